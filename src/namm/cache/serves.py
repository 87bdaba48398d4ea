"""What a cache can serve, as far as a model's class and configuration tell."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

ATTENTION_DROPOUT = (
    "attention dropout is on: call model.eval(), or to learn set attention_dropout to 0 in the model's configuration"
)
NEEDS_USE_CACHE = (
    "use_cache is False, so that generate would feed the whole text again at every step: set "
    "model.generation_config.use_cache = True, or leave use_cache=False out of the call"
)

CANNOT_ROLL_BACK = (
    "a cache that forgets can't be rolled back, so assisted decoding and prompt lookup can't use it; call generate "
    "without assistant_model and prompt_lookup_num_tokens"
)
COMPILED = (
    "a compiled model can't be served: what a cache keeps changes its shapes from step to step; use the model that "
    "was compiled"
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


def served_model(model: Any) -> PreTrainedModel:
    """The model, out of the wrapper that peft puts around it.

    Raises:
        TypeError, UnsupportedModelError: where its class tells that it can't be served.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if isinstance(model, tuple):
        raise TypeError("MemoryCache takes a model and got a tuple: load_model returns (model, tokenizer)")
    if is_compiled(model):
        raise UnsupportedModelError(COMPILED)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"MemoryCache takes a model of transformers and got {type(model).__name__}")
    return model


def is_compiled(model: Any) -> bool:
    """By ``torch.compile(model)`` or ``model.compile()``."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def longrope_switch(config: Any) -> int | None:
    """The number of tokens beyond which rotary frequencies change, for models whose they do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    limit = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return None if limit is None else int(limit)


def refuse_switch(seen: int, new: int, switches_at: int | None) -> None:
    """Keys cached under short rotary frequencies mean nothing under long ones.

    Raises:
        UnsupportedModelError: if `new` tokens after those seen go past the change.
    """
    if switches_at is not None and 0 < seen <= switches_at < seen + new:
        raise UnsupportedModelError(
            f"this model changes its rotary positions past {switches_at} tokens, and {seen} are cached with "
            f"the old ones: give a text that will get longer in one call of more than {switches_at} tokens, "
            "or stop before"
        )
