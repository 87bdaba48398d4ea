"""What a cache can serve, as far as a configuration tells."""

from __future__ import annotations

NEEDS_USE_CACHE = (
    "use_cache is False, so that generate would feed the whole text again at every step: set "
    "model.generation_config.use_cache = True, or leave use_cache=False out of the call"
)


class UnsupportedModelError(ValueError):
    """A model, or a way of calling it, that a `MemoryCache` can't serve."""
