"""Gradient checkpointing with a cache.

transformers takes the cache away from a layer that is checkpointed, since one that is computed twice would be cached
twice. A `MemoryCache` knows the second time for what it is (`namm.cache.tape`), and without it a layer would attend to
all tokens, so that for one call of the model its layers are told to keep the cache.
"""

from __future__ import annotations

import threading
from collections import Counter

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

NAME = "_can_checkpoint_with_cache"
_lock = threading.RLock()  # a finaliser may run anywhere, also where the lock is held
_kept: Counter[int] = Counter()  # by id: in how many calls of a model


class Keeping:
    """The layers of one call that keep the cache.

    Attributes:
        layers: they; none outside of a call.
    """

    def __init__(self) -> None:
        self.layers: list[GradientCheckpointingLayer] = []

    def begin(self, model: PreTrainedModel) -> None:
        """Idempotent, as is `end`."""
        if self.layers:
            return
        self.layers = [
            module
            for module in model.modules()
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing and module.training
        ]
        with _lock:
            for layer in self.layers:
                _kept[id(layer)] += 1
                setattr(layer, NAME, True)

    def end(self) -> None:
        layers, self.layers = self.layers, []
        with _lock:
            for layer in layers:
                _kept[id(layer)] -= 1
                if not _kept[id(layer)]:
                    del _kept[id(layer)]
                    layer.__dict__.pop(NAME, None)

    def __del__(self) -> None:  # of a call that was interrupted
        if self.layers:
            self.end()
