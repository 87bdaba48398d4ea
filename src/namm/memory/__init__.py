"""A neural attention memory model: from attention values to a score for every cached token."""

from namm.memory.config import NAMMConfig
from namm.memory.files import MemoryFileError, find_memory, shipped_memories
from namm.memory.namm import NAMM

__all__ = ["NAMM", "MemoryFileError", "NAMMConfig", "find_memory", "shipped_memories"]
