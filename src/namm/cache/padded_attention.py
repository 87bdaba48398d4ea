"""The arithmetic of attention of all heads and batch rows at once, padded to one length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, bounded
from namm.support.tensors import band, mean_of

LOGITS = 2**26  # that are held at once


def excluding_free(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits: ``[rows * heads, 1, slots]``, of positions ``[rows, heads, slots]``.

    It is finite: softmax makes it 0, but no row that sees free slots alone NaN.
    """
    return (positions < 0).to(dtype).mul_(torch.finfo(dtype).min / 2).flatten(0, 1)[:, None]


def attend_padded(
    query: Tensor,
    keys: Tensor,
    values: Tensor | None,
    end: int,
    form: AttentionForm,
    excluded: Tensor,
    record: Tensor | None = None,
    normalisers: Tensor | None = None,
) -> Tensor | None:
    """Causal attention of the newest tokens' own queries.

    Args:
        query: ``[rows, query heads, n, width]``.
        keys: ``[rows, heads, slots, width]``, the newest at the slot ``end - 1``. values: likewise; None: none wanted.
        excluded: see `excluding_free`.
        record: ``[m, rows * heads, slots]``, filled with the attention of the last m queries, mean over the group.
        normalisers: ``[rows, query heads, c]`` float32, filled with those of the last c queries.

    Returns:
        ``[rows, query heads, n, value width]``, None without values; anything for queries that see free slots only.
    """
    rows, query_heads, queries, width = query.shape
    slots = keys.shape[2]
    outputs = []
    flat_keys = keys.flatten(0, 1).transpose(1, 2)
    for start, stop in _tiles(queries, max(1, LOGITS // (rows * query_heads * slots))):
        scaled = (query[:, :, start:stop] * form.scaling).reshape(flat_keys.shape[0], -1, width)
        logits = _logits(scaled, flat_keys, form, excluded).view(rows, query_heads, stop - start, slots)
        first_future = end - queries + start + 1
        if first_future < end:
            future = band(stop - start, end - first_future, start - stop, -1, query.device)
            logits[..., first_future:end].masked_fill_(future, -math.inf)
        if normalisers is not None and (first := max(start, queries - normalisers.shape[2])) < stop:
            offset = normalisers.shape[2] - queries
            normalisers[:, :, first + offset : stop + offset] = form.log_normaliser(logits[:, :, first - start :])
        probabilities = form.softmax(logits).view(flat_keys.shape[0], -1, slots)
        if values is not None:
            products = probabilities @ values.flatten(0, 1)
            outputs.append(products.view(rows, query_heads, stop - start, -1))
        if record is not None and (first := max(start, queries - len(record))) < stop:
            grouped = probabilities.unflatten(1, (-1, stop - start))[:, :, first - start :]
            offset = len(record) - queries
            mean_of(grouped.transpose(0, 1), record[first + offset : stop + offset].transpose(0, 1))
    if values is None:
        return None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def replay_padded(
    query: Tensor, normalisers: Tensor, keys: Tensor, form: AttentionForm, excluded: Tensor, into: Tensor
) -> None:
    """Attention that earlier queries paid to keys that are still there, and any number to newer ones.

    Args:
        query: ``[rows, query heads, n, width]``. normalisers: ``[rows, query heads, n]``, infinite where none was.
        keys: ``[rows, heads, slots, width]``.
        excluded: see `excluding_free`.
        into: ``[n, rows * heads, slots]`` is filled.
    """
    rows, query_heads, queries, width = query.shape
    flat_keys = keys.flatten(0, 1).transpose(1, 2)
    scaled = (query * form.scaling).reshape(flat_keys.shape[0], -1, width)
    found = _logits(scaled, flat_keys, form, excluded) - normalisers.view(flat_keys.shape[0], -1, 1)
    grouped = found.exp_().to(query.dtype).unflatten(1, (-1, queries))
    mean_of(grouped.transpose(0, 1), into.transpose(0, 1))


def _logits(scaled: Tensor, keys: Tensor, form: AttentionForm, excluded: Tensor) -> Tensor:
    if form.softcap is None:
        return torch.baddbmm(excluded, scaled, keys)
    return bounded(scaled @ keys, form.softcap).add_(excluded)


def _tiles(queries: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, queries, size):
        yield start, min(start + size, queries)
