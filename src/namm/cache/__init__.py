"""A KV cache that forgets: storage, arithmetic of attention, layers and the cache that transformers sees."""

from namm.cache.cache import MemoryCache
from namm.cache.checkpoints import checkpointed
from namm.cache.graphs import graphed
from namm.cache.serves import UnsupportedModelError, layer_kinds
from namm.cache.stats import CacheStats

__all__ = ["CacheStats", "MemoryCache", "UnsupportedModelError", "checkpointed", "graphed", "layer_kinds"]
