"""A KV cache that forgets: storage, arithmetic of attention, layers and the cache that transformers sees."""

from namm.cache.cache import MemoryCache, layer_kinds
from namm.cache.serves import UnsupportedModelError
from namm.cache.stats import CacheStats

__all__ = ["CacheStats", "MemoryCache", "UnsupportedModelError", "layer_kinds"]
