"""Attention over a cache that forgets: the function registered with transformers.

`MemoryLayer.update` hands the model keys and values that nothing can compute with (`HandedTensor`); a model passes
them on to its attention function, which is `memory_attention` here and gives them back to the layer. A model that
computes with cached keys on the way, or another attention function, fails loudly instead of seeing half the tokens.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from namm.cache.arithmetic import Logits, bounded, softmax_beside

IMPLEMENTATION = "namm_memory"
"""Name of the attention implementation (without "sdpa" or "flash", which would trigger transformers' own checks)."""


class UnsupportedModelError(ValueError):
    """A model, or a way of calling it, that a `MemoryCache` can't serve."""


class _Layer(Protocol):
    def attend(self, query: Tensor, mask: Tensor | None, logits: Logits) -> Tensor: ...


class HandedTensor(Tensor):
    """The new tokens' keys or values on their way from the cache to the attention function: metadata only.

    Attributes:
        layer: the cache layer that waits for them.
    """

    layer: _Layer

    READABLE = frozenset(
        {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_cpu", "requires_grad", "size", "dim", "numel"}
        | {"layer", "data_ptr", "element_size", "is_floating_point", "is_contiguous", "stride", "__len__", "nelement"}
    )

    @classmethod
    def hand(cls, tensor: Tensor, layer: _Layer) -> HandedTensor:
        handed = tensor.as_subclass(cls)
        handed.layer = layer
        return handed

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch's is untyped
        return f"HandedTensor(shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: its descriptor carries the name
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name not in cls.READABLE:
            raise UnsupportedModelError(
                f"the model computed {name!r} on keys or values that a MemoryCache handed to its attention. Either its "
                f"attention implementation is not {IMPLEMENTATION!r} any more (make the MemoryCache after every "
                "set_attn_implementation), or the model transforms cached keys, as multi-head latent attention does, "
                "and can't be served"
            )
        return super().__torch_function__(func, types, args, kwargs or {})


def memory_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers.

    Layers of a `MemoryCache` attend to what they keep; all others (sliding windows, vision towers, models called with
    an ordinary cache or none) go through transformers' sdpa, or through the explicit form where there is a softcap or
    there are sinks.

    Args:
        query: ``[batch, query heads, queries, width]``. key, value: ``[batch, KV heads, tokens, width]``.
        attention_mask: None or ``[batch, 1, queries, tokens]``.

    Returns:
        ``[batch, queries, query heads, value width]`` and None.

    Raises:
        UnsupportedModelError: for arguments that change attention in a way the cache doesn't know.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(key, HandedTensor):
        if softcap is None and s_aux is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        return _eager(module, query, key, value, attention_mask, scaling, softcap, s_aux), None
    _refuse_unknown(module, value, key.layer, dropout, kwargs)
    return key.layer.attend(query, attention_mask, Logits(scaling, softcap, s_aux)), None


def _refuse_unknown(module: nn.Module, value: Tensor, layer: _Layer, dropout: float, kwargs: dict[str, Any]) -> None:
    if not isinstance(value, HandedTensor) or value.layer is not layer:
        raise UnsupportedModelError(f"{type(module).__name__} attends with values that are not the cache's own")
    if dropout and module.training:
        raise UnsupportedModelError("attention dropout is on: call model.eval() before using a MemoryCache")
    for argument in ("sliding_window", "position_bias", "alibi"):
        if kwargs.get(argument) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {argument!r} to a layer that its configuration calls full attention; "
                "a MemoryCache can't serve it"
            )
    causal = kwargs.get("is_causal")
    if causal is False or (causal is None and getattr(module, "is_causal", True) is False):
        raise UnsupportedModelError(
            f"{type(module).__name__} is not causal; a MemoryCache serves causal attention only"
        )


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Masked attention with softcap or sinks for layers that keep an ordinary cache."""
    group = query.shape[1] // key.shape[1]
    logits = query @ repeat_kv(key, group).transpose(-1, -2)
    queries, tokens = logits.shape[-2:]
    if mask is None and queries > 1 and getattr(module, "is_causal", True):
        mask = torch.ones(queries, tokens, dtype=torch.bool, device=query.device).tril(tokens - queries)
    logits = bounded(logits * scaling, softcap)
    hidden = ~mask if mask is not None and mask.dtype == torch.bool else None
    if hidden is not None:
        logits = logits.masked_fill(hidden, -math.inf)
    elif mask is not None:
        logits = logits + mask
    probabilities = softmax_beside(logits, sinks[:, None] if sinks is not None else None)
    if hidden is not None:
        probabilities = probabilities.masked_fill(hidden, 0)  # a row of padding sees nothing: zeros, as sdpa gives
    return (probabilities @ repeat_kv(value, group)).transpose(1, 2).contiguous()


AttentionInterface.register(IMPLEMENTATION, memory_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without a mask function padding would be lost silently
