"""What a cache can serve, as far as a configuration tells."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

NEEDS_USE_CACHE = (
    "use_cache is False, so that generate would feed the whole text again at every step: set "
    "model.generation_config.use_cache = True, or leave use_cache=False out of the call"
)


class UnsupportedModelError(ValueError):
    """A model, or a way of calling it, that a `MemoryCache` can't serve."""


def layer_kinds(config: PretrainedConfig, name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The kind of each layer of the language model, and what transformers makes its cache with.

    Args:
        name: of the model, for the error.

    Raises:
        UnsupportedModelError: if the configuration is one of a model that can't be served; the message says why.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; a MemoryCache serves decoder-only models")
    text: Any = config.get_text_config(decoder=True)
    try:
        latent = any(getattr(layer, "kv_lora_rank", None) for layer in text.per_layer_config)
    except AttributeError:
        raise UnsupportedModelError(f"{name} has no configuration of a language model's layers") from None
    if latent:
        raise UnsupportedModelError(
            f"{name} has multi-head latent attention, which caches one compressed form for all heads; a MemoryCache "
            "forgets keys and values of single heads"
        )
    if getattr(text, "num_kv_shared_layers", 0) or "reuse" in (getattr(text, "kv_sharing_modes", None) or ()):
        raise UnsupportedModelError(
            f"{name} has layers that share the keys and values of others, which forget what those would need"
        )
    if getattr(text, "cross_attention_layers", None) or getattr(text, "add_cross_attention", False):
        raise UnsupportedModelError(f"{name} has cross-attention layers; a MemoryCache serves self-attention only")
    types, arguments = get_layer_types_and_kwargs(text)
    if "full_attention" not in types:
        raise UnsupportedModelError(
            f"{name} has no full-attention layer to forget in (its layers: {sorted(set(types))})"
        )
    if not getattr(text.per_layer_config[0], "num_attention_heads", None):  # xLSTM, RWKV
        raise UnsupportedModelError(f"{name} has no attention heads, and so nothing to forget")
    return types, arguments
