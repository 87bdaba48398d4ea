"""Attention over a cache that forgets: the function registered with transformers, and its arithmetic.

`MemoryLayer.update` hands the model keys and values that nothing can compute with (`HandedTensor`); a model passes
them on to its attention function, which is `memory_attention` here and gives them back to the layer. A model that
computes with cached keys on the way, or another attention function, fails loudly instead of seeing half the tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from namm.reductions import mean_of
from namm.storage import round_up

IMPLEMENTATION = "namm_memory"
"""Name of the attention implementation (without "sdpa" or "flash", which would trigger transformers' own checks)."""

QUERY_TILE = 128  # queries whose probabilities are held at once; larger tiles fall out of the CPU's cache


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
    logits = _bounded(logits * scaling, softcap)
    hidden = ~mask if mask is not None and mask.dtype == torch.bool else None
    if hidden is not None:
        logits = logits.masked_fill(hidden, -math.inf)
    elif mask is not None:
        logits = logits + mask
    probabilities = _softmax(logits, sinks[:, None] if sinks is not None else None)
    if hidden is not None:
        probabilities = probabilities.masked_fill(hidden, 0)  # a row of padding sees nothing: zeros, as sdpa gives
    return (probabilities @ repeat_kv(value, group)).transpose(1, 2).contiguous()


def _bounded(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last dimension, with one more logit a head (``[heads, 1]``) that takes its share and goes."""
    if sinks is None:
        return logits.softmax(-1)
    sink = sinks.to(logits).unsqueeze(-1).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1]


def attend_exactly(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """PyTorch's sdpa for one KV head, causal, the queries being the newest tokens.

    Args:
        query: ``[group, queries, width]``. keys, values: ``[tokens, width]``, ``tokens >= queries``.

    Returns:
        ``[group, queries, value width]``.
    """
    group, queries, _ = query.shape
    tokens = keys.shape[0]
    # sdpa's own causal flag looks at the first keys when there are more keys than queries
    mask = None
    if 1 < queries < tokens:
        mask = torch.ones(queries, tokens, dtype=torch.bool, device=query.device).tril(tokens - queries)
    return F.scaled_dot_product_attention(
        query[None],
        keys.expand(1, group, *keys.shape),
        values.expand(1, group, *values.shape),
        attn_mask=mask,
        is_causal=1 < queries == tokens,
        scale=scaling,
    )[0]


@dataclass(frozen=True)
class Logits:
    """How queries and keys become logits, and which of the given keys are tokens.

    Keys and values may come with free slots behind them (see `namm.storage.round_up`), which nothing attends to.

    Attributes:
        scaling: of the products. softcap: bound of the logits, if any. sinks: ``[group]`` logits that take their share
            of attention and give nothing.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def of_group(self, group: slice) -> Logits:
        return self if self.sinks is None else replace(self, sinks=self.sinks[group])

    def between(self, query: Tensor, keys: Tensor, tokens: int) -> Tensor:
        """Causal logits of the newest tokens' own queries.

        Args:
            query: ``[group, queries, width]``. keys: ``[slots, width]``, of which the first `tokens` count.

        Returns:
            ``[group, queries, slots]``, minus infinity where a query must not look.
        """
        group, queries, width = query.shape
        # one product for the whole group; the scale is a power of two for the usual widths, and exact
        logits = (query * self.scaling).reshape(group * queries, width) @ keys.T
        logits = _bounded(logits, self.softcap).view(group, queries, -1)
        first_future = tokens - queries + 1
        future = torch.ones(queries, keys.shape[0] - first_future, dtype=torch.bool, device=query.device)
        logits[..., first_future:].masked_fill_(future.triu(), -math.inf)
        return logits

    def softmax(self, logits: Tensor) -> Tensor:
        return _softmax(logits, None if self.sinks is None else self.sinks[:, None])


def attend(
    query: Tensor, keys: Tensor, values: Tensor | None, tokens: int, logits: Logits, record: Tensor | None = None
) -> Tensor | None:
    """Explicit causal attention of one KV head in tiles of queries; the probabilities serve the output and the record.

    Args:
        query: ``[group, queries, width]``, the newest tokens' own.
        keys: ``[slots, width]``, of which the first ``tokens >= queries`` count. values: ``[slots, value width]``, or
            None where only the record is wanted.
        record: zeros to be filled with the attention of the last queries, ``[rows, slots]`` for the mean over the group
            or ``[group, rows, slots]``; None: not wanted.

    Returns:
        ``[group, queries, value width]`` in the dtype of the query, None without values.
    """
    group, queries, _ = query.shape
    older = tokens - queries
    output = query.new_empty(group, queries, values.shape[-1]) if values is not None else None
    unrecorded = queries - (record.shape[-2] if record is not None else 0)
    for start in range(0 if values is not None else unrecorded, queries, QUERY_TILE):
        stop = min(start + QUERY_TILE, queries)
        slots = min(round_up(older + stop), keys.shape[0])
        probabilities = logits.softmax(logits.between(query[:, start:stop], keys[:slots], older + stop))
        if output is not None and values is not None:
            products = probabilities.view(group * (stop - start), slots) @ values[:slots]
            output[:, start:stop] = products.view(group, stop - start, -1)
        if record is not None and stop > unrecorded:
            first = max(start, unrecorded)
            rows = probabilities[:, first - start :]
            into = record[..., first - unrecorded : stop - unrecorded, :slots]
            into.copy_(rows if record.ndim == 3 else mean_of(rows))
    return output


def log_normaliser(query: Tensor, keys: Tensor, tokens: int, logits: Logits) -> Tensor:
    """Log of the softmax denominator of each query, ``[group, queries]`` float32; arguments as for `attend`."""
    found = logits.between(query, keys, tokens).float()
    if logits.sinks is not None:
        sinks = logits.sinks.to(found)[:, None, None].expand(*found.shape[:-1], 1)
        found = torch.cat([found, sinks], dim=-1)
    return found.logsumexp(-1)


def replay(query: Tensor, log_normalisers: Tensor, keys: Tensor, logits: Logits, into: Tensor) -> None:
    """Attention that earlier queries paid to keys that are still there, from their log normalisers.

    Args:
        query: ``[group, queries, width]``. log_normalisers: ``[group, queries]``, taken when all their keys were there.
        keys: ``[slots, width]``, the oldest of which those queries saw.
        into: ``[queries, n]`` for the mean over the group or ``[group, queries, n]``: filled for the first n keys.
    """
    found = _bounded((query * logits.scaling) @ keys.T, logits.softcap).float()[..., : into.shape[-1]]
    probabilities = (found - log_normalisers[..., None]).exp_().to(query.dtype)
    into.copy_(probabilities if into.ndim == 3 else mean_of(probabilities))


AttentionInterface.register(IMPLEMENTATION, memory_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without a mask function padding would be lost silently
