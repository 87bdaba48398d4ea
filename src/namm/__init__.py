"""Neural attention memory models for transformers: a KV cache that forgets, and really frees what it forgot.

Names are imported when they are first asked for, so that ``import namm`` costs nothing where it isn't used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from namm.support.version import VERSION as __version__

if TYPE_CHECKING:
    from namm import policies
    from namm.cache import CacheStats, MemoryCache, UnsupportedModelError, graphed
    from namm.inspection import Inspection, inspect
    from namm.memory import NAMM, MemoryFileError, NAMMConfig
    from namm.models import ModelNotFoundError, load_model

__all__ = [
    "NAMM",
    "CacheStats",
    "Inspection",
    "MemoryCache",
    "MemoryFileError",
    "ModelNotFoundError",
    "NAMMConfig",
    "UnsupportedModelError",
    "__version__",
    "graphed",
    "inspect",
    "load_model",
    "policies",
]

_HOMES = {
    "namm.cache": ("CacheStats", "MemoryCache", "UnsupportedModelError", "graphed"),
    "namm.inspection": ("Inspection", "inspect"),
    "namm.memory": ("NAMM", "MemoryFileError", "NAMMConfig"),
    "namm.models": ("ModelNotFoundError", "load_model"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# `namm.tasks` and the like need no import of their own, as when all was loaded at once
_ROOMS = ("cache", "evaluation", "inspection", "memory", "models", "policies", "support", "tasks")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"namm.{name}")
    if name in _HOME_OF:
        found = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return found
    raise AttributeError(f"module 'namm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})
