"""Neural attention memory models for transformers: a KV cache that forgets, and really frees what it forgot."""

from namm import policies
from namm.cache import MemoryCache, UnsupportedModelError
from namm.cache.stats import CacheStats
from namm.inspection import Inspection, inspect
from namm.memory import NAMM, MemoryFileError, NAMMConfig
from namm.models import ModelNotFoundError, load_model
from namm.support.version import VERSION as __version__

__all__ = [
    "__version__",
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
