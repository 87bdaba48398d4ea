"""Whether a cache can serve a model, and the call that begins."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from namm.cache.layer import MemoryLayer
from namm.cache.serves import COMPILED, UnsupportedModelError, is_compiled, layer_kinds


def check_call(model: PreTrainedModel | None, layers: Sequence[MemoryLayer]) -> None:
    """Refuse to go on after a call that was interrupted between two of its layers.

    Raises:
        UnsupportedModelError: if the model is compiled.
        RuntimeError: if the cache has to be reset or settled before.
    """
    if is_compiled(model):
        raise UnsupportedModelError(COMPILED)
    if len({layer.seen_with_padding for layer in layers}) > 1:
        raise RuntimeError(
            "an earlier call was interrupted and the layers of this cache saw different tokens; reset() it"
        )
    if not all(row.room(1) for row in layers[0].rows):
        raise RuntimeError("a rehearsal was interrupted, and what was read is not decided on; settle() the cache")


def check_layers(model: PreTrainedModel, count: int, forgetting: Sequence[int]) -> None:
    """Raises UnsupportedModelError unless the model has so many layers, these of them with full attention."""
    types, _ = layer_kinds(model.config, type(model).__name__)
    if len(types) != count or list(forgetting) != [i for i, kind in enumerate(types) if kind == "full_attention"]:
        raise UnsupportedModelError(
            f"{type(model).__name__} has other layers than the model that this cache was made for"
        )
