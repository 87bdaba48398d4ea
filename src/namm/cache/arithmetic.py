"""The arithmetic of attention of one KV head over keys that may have free slots behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.support.tensors import band, mean_of, round_up

QUERY_TILE = 128  # queries whose probabilities are held at once; larger tiles fall out of the CPU's cache


def groups(query: Tensor, heads: int) -> list[slice]:
    """Of each of so many KV heads the query heads that share it, of queries ``[query heads, ...]``."""
    group = query.shape[0] // heads
    return [slice(h * group, (h + 1) * group) for h in range(heads)]


def bounded(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits, softly bound to plus and minus a softcap if there is one."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def softmax_beside(logits: Tensor, sinks: Tensor | None) -> Tensor:
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
class AttentionForm:
    """How queries and keys become logits, and which of the given keys are tokens.

    Keys and values may come with free slots behind them (see `round_up`), which nothing attends to.

    Attributes:
        scaling: of the products. softcap: bound of the logits, if any. sinks: ``[group]`` logits that take their share
            of attention and give nothing.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def of_group(self, group: slice) -> AttentionForm:
        return self if self.sinks is None else replace(self, sinks=self.sinks[group])

    def between(self, query: Tensor, keys: Tensor, tokens: int) -> Tensor:
        """Causal logits of the newest tokens' own queries.

        Args:
            query: ``[group, queries, width]``, scaled. keys: ``[slots, width]``, of which the first `tokens` count.

        Returns:
            ``[group, queries, slots]``, minus infinity where a query must not look.
        """
        group, queries, width = query.shape
        logits = query.reshape(group * queries, width) @ keys.T  # one product for the whole group
        logits = bounded(logits, self.softcap).view(group, queries, -1)
        first_future = tokens - queries + 1
        future = band(queries, keys.shape[0] - first_future, -queries, -1, query.device)
        logits[..., first_future:].masked_fill_(future, -math.inf)
        return logits

    def softmax(self, logits: Tensor) -> Tensor:
        return softmax_beside(logits, None if self.sinks is None else self.sinks[:, None])

    def log_normaliser(self, logits: Tensor) -> Tensor:
        """Log of the softmax denominator of logits ``[group, queries, slots]``: ``[group, queries]`` float32."""
        found = logits.float()
        if self.sinks is not None:
            sinks = self.sinks.to(found)[:, None, None].expand(*found.shape[:-1], 1)
            found = torch.cat([found, sinks], dim=-1)
        return found.logsumexp(-1)


class Segmented(Protocol):
    """Tokens of several heads; see `namm.cache.storage.TokenStore`."""

    @property
    def heads(self) -> int: ...
    @property
    def lengths(self) -> Sequence[int]: ...
    def parts(self, head: int) -> Sequence[tuple[Tensor, Tensor, int]]: ...


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor | None,
    tokens: int,
    form: AttentionForm,
    record: Tensor | None = None,
    normalisers: Tensor | None = None,
) -> Tensor | None:
    """Explicit causal attention of one KV head in tiles of queries; the probabilities serve the output and the record.

    Args:
        query: ``[group, queries, width]``, the newest tokens' own.
        keys: ``[slots, width]``, of which the first ``tokens >= queries`` count. values: ``[slots, value width]``, or
            None where only the record is wanted.
        record: zeros to be filled with the attention of the last queries, ``[rows, slots]`` for the mean over the group
            or ``[group, rows, slots]``; None: not wanted.
        normalisers: ``[group, n]`` float32, filled with the log normalisers of the last n queries, at most as many as
            are recorded; None: not wanted.

    Returns:
        ``[group, queries, value width]`` in the dtype of the query, None without values.
    """
    group, queries, _ = query.shape
    older = tokens - queries
    outputs = []
    unrecorded = queries - (record.shape[-2] if record is not None else 0)
    unmeasured = queries - (normalisers.shape[-1] if normalisers is not None else 0)
    for start in range(0 if values is not None else unrecorded, queries, QUERY_TILE):
        stop = min(start + QUERY_TILE, queries)
        slots = min(round_up(older + stop), keys.shape[0])
        scaled = query[:, start:stop] * form.scaling  # a power of two for the usual widths, and exact
        logits = form.between(scaled, keys[:slots], older + stop)
        if normalisers is not None and stop > unmeasured:
            first = max(start, unmeasured)
            normalisers[:, first - unmeasured : stop - unmeasured] = form.log_normaliser(logits[:, first - start :])
        probabilities = form.softmax(logits)
        if values is not None:
            products = probabilities.view(group * (stop - start), slots) @ values[:slots]
            outputs.append(products.view(group, stop - start, -1))
        if record is not None and stop > unrecorded:
            first = max(start, unrecorded)
            rows = probabilities[:, first - start :]
            into = record[..., first - unrecorded : stop - unrecorded, :slots]
            _write(rows, into)
    if values is None:
        return None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def attend_newest(query: Tensor, store: Segmented, form: AttentionForm) -> Tensor:
    """What `attend` gives for the newest token's own query, of all KV heads of a row in turn.

    Args:
        query: ``[query heads, 1, width]``.

    Returns:
        ``[query heads, 1, value width]``.
    """
    scaled = (query * form.scaling)[:, 0]
    outputs = []
    for head, own in enumerate(groups(query, store.heads)):
        parts = store.parts(head)
        paid = [_of_first(scaled[own] @ keys.T, tokens, form.softcap) for keys, _, tokens in parts]
        logits = paid[0] if len(paid) == 1 else torch.cat(paid, dim=-1)
        probabilities = softmax_beside(logits, None if form.sinks is None else form.sinks[own])
        shares = probabilities.split([keys.shape[0] for keys, _, _ in parts], dim=-1)
        output = shares[0] @ parts[0][1]
        for share, (_, values, _) in zip(shares[1:], parts[1:], strict=True):
            output += share @ values
        outputs.append(output)
    return torch.cat(outputs)[:, None]


def _of_first(logits: Tensor, tokens: int, softcap: float | None) -> Tensor:
    """Logits ``[group, slots]`` of which so many count."""
    logits = bounded(logits, softcap)
    if tokens < logits.shape[-1]:
        logits[:, tokens:] = -math.inf
    return logits


def replay(query: Tensor, log_normalisers: Tensor, keys: Tensor, form: AttentionForm, into: Tensor) -> None:
    """Attention that earlier queries paid to keys that are still there, from their log normalisers.

    Args:
        query: ``[group, queries, width]``. log_normalisers: ``[group, queries]``, taken when all their keys were there.
        keys: ``[slots, width]``, the oldest of which those queries saw.
        into: ``[queries, n]`` for the mean over the group or ``[group, queries, n]``: filled for the first n keys.
    """
    group, queries, width = query.shape
    logits = (query * form.scaling).reshape(group * queries, width) @ keys.T
    found = bounded(logits, form.softcap).view(group, queries, -1)[..., : into.shape[-1]]
    probabilities = (found - log_normalisers[..., None]).exp_().to(query.dtype)
    _write(probabilities, into)


def _write(probabilities: Tensor, into: Tensor) -> None:
    """Attention ``[group, queries, n]`` as a policy sees it: of all query heads, or ``[queries, n]``, their mean."""
    if into.ndim == 3:
        into.copy_(probabilities)
    else:
        mean_of(probabilities, into)


def refuse_infinite(output: Tensor, heads: int, layer: int, rows: Sequence[int], seen: Mapping[int, int]) -> None:
    """Raises ValueError, naming the place, if attention gave NaN or infinity in a block that is to be judged.

    Args:
        output: ``[some rows, query heads, n, value width]``. heads: KV heads. rows: which these are. seen: by each row.
    """
    if not math.isfinite(float(torch.linalg.vector_norm(output, torch.inf))):
        wrong = ~torch.isfinite(output).all(-1).all(-1).unflatten(1, (heads, -1)).all(-1)
        number, head = wrong.nonzero()[0].tolist()
        raise infinite(layer, rows[number], head, output.shape[2], seen[rows[number]])


def infinite(layer: int, row: int, head: int, tokens: int, seen: int) -> ValueError:
    """The error of attention that gave NaN or infinity in a block of so many tokens, the last of which were seen."""
    return ValueError(
        f"layer {layer}, batch row {row}, KV head {head}: attention gave NaN or infinity in the {tokens} tokens before "
        f"token {seen}; a policy can't judge such values (try another dtype)"
    )
