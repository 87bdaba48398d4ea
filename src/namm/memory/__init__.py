"""A neural attention memory model: from attention values to a score for every cached token."""

from namm.memory.config import UNIVERSAL, NAMMConfig
from namm.memory.files import MemoryFileError, find_memory, shipped_memories
from namm.memory.namm import NAMM

__all__ = ["NAMM", "UNIVERSAL", "MemoryFileError", "NAMMConfig", "find_memory", "shipped_memories"]
