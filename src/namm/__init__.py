"""Neural attention memory models for transformers: a KV cache that forgets, and really frees what it forgot."""

from namm import policies
from namm.attention import UnsupportedModelError
from namm.cache import MemoryCache
from namm.inspection import Inspection, inspect
from namm.memory import NAMM, MemoryFileError, NAMMConfig
from namm.models import ModelNotFoundError, load_model
from namm.stats import CacheStats

__version__ = "0.1.0"

__all__ = [
    "NAMM",
    "CacheStats",
    "Inspection",
    "MemoryCache",
    "MemoryFileError",
    "ModelNotFoundError",
    "NAMMConfig",
    "UnsupportedModelError",
    "inspect",
    "load_model",
    "policies",
]
