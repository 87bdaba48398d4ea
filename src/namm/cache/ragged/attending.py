"""Attention of the newest tokens to all that a store holds, as kernels do it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.codes import group_of, turned
from namm.cache.packed import CODES, Packed
from namm.cache.ragged.kernels import attention, packed
from namm.cache.ragged.launching import launch, numbers, power_of_two, widens
from namm.cache.ragged.ring import Ring
from namm.cache.ragged.store import RaggedStore

CHUNK = 256  # keys that a program of decoding takes, so that a long head keeps nobody waiting
FEW = 64  # queries of a group, up to which there are chunks


def attend(
    store: RaggedStore,
    query: Tensor,
    new: Sequence[int],
    form: AttentionForm,
    ring: Ring | None,
    held: Packed | None = None,
) -> Tensor:
    """Causal attention of the newest tokens' own queries, whose log normalisers go to the ring.

    Args:
        query: ``[rows, query heads, n, width]``, of which each row's last `new` are some.
        held: tokens before those in the store, if there are any; for `are_few` queries only.

    Returns:
        ``[rows, query heads, n, value width]``, zeros for the others.
    """
    rows, query_heads, tokens, width = query.shape
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys, values = store.column("keys"), store.column("values")
    value, group, device = values.shape[1], query_heads // store.heads, query.device
    output = query.new_empty(rows, tokens, query_heads, value)
    chunked = are_few(query, store.heads)
    queries = power_of_two(tokens * group) if chunked else 64
    chunks = chunks_of(store.capacities) if chunked else 1
    parts = chunks + (0 if held is None else chunks_of(held.lengths))
    part = query.new_empty(store.segments, parts, queries, value, dtype=torch.float32) if chunked else output
    part_normalisers = part.new_empty(part.shape[:3]) if chunked else output
    normalisers, capacity = (output, 1) if ring is None else (ring.normalisers, ring.capacity)
    told = numbers(tuple(new), device)
    shared = {
        "HEADS": store.heads,
        "GROUP": group,
        "VALUE": value,
        "LOOKS": ring is not None,
        "CAPACITY": capacity,
        "QUERIES": queries,
        "VALUES": power_of_two(value),
    }
    launch(
        attention.attend,
        (1 if chunked else -(-tokens * group // queries), store.segments, chunks),
        query,
        *query.stride()[:3],
        keys,
        values,
        keys.stride(0),
        output,
        store.table,
        store.segments,
        told,
        tokens,
        normalisers,
        output if form.sinks is None else form.sinks,
        part,
        part_normalisers,
        parts,
        form.scaling,
        form.softcap or 1.0,
        **shared,
        WIDTH=width,
        CAPPED=form.softcap is not None,
        SINKS=form.sinks is not None,
        CHUNK=CHUNK if chunked else 0,
        WIDEN=widens(query.dtype),
        KEYS=32 if chunked else 64,
        COLUMNS=power_of_two(width),
        num_warps=4,
    )
    if held is not None:
        attend_packed(held, query, told, form, part, part_normalisers, chunks)
    if chunked:
        launch(
            attention.combine,
            (store.segments,),
            part,
            part_normalisers,
            parts,
            output,
            store.table,
            store.segments,
            told,
            tokens,
            normalisers,
            **shared,
            num_warps=4,
        )
    return output.transpose(1, 2)


def attend_packed(
    held: Packed, query: Tensor, new: Tensor, form: AttentionForm, part: Tensor, normalisers: Tensor, first: int
) -> None:
    """Fill the parts from the `first` on with what queries make of packed tokens.

    Args:
        query: ``[rows, query heads, n, width]``. new: of each row, how many of the last of these there are.
        part: ``[segments, parts, queries, value width]`` float32. normalisers: ``[segments, parts, queries]``.
    """
    rows, query_heads, tokens, width = query.shape
    segments, parts, queries, value = part.shape
    columns, values = power_of_two(width), power_of_two(value)
    assert held.frame is not None
    launch(
        packed.attend_packed,
        (segments, chunks_of(held.lengths)),
        query,
        *query.stride()[:3],
        *(held.columns[name] for name in (*CODES, "sink keys", "sink values")),
        held.frame,
        *turning(width, columns, query.dtype, query.device),
        *turning(value, values, query.dtype, query.device),
        held.places,
        segments,
        new,
        tokens,
        part,
        normalisers,
        parts,
        first,
        form.scaling,
        form.softcap or 1.0,
        HEADS=segments // rows,
        GROUP=query_heads * rows // segments,
        WIDTH=width,
        VALUE=value,
        BITS=held.bits,
        MOST=2**held.bits - 1,
        KEY_SHARED=group_of(width),
        VALUE_SHARED=group_of(value),
        CAPPED=form.softcap is not None,
        CHUNK=CHUNK,
        WIDEN=widens(query.dtype),
        SPLIT=query.dtype != torch.float32,
        HALF=query.dtype != torch.float32 and not widens(query.dtype),
        QUERIES=queries,
        KEYS=128 // held.bits,  # as many as registers take
        EXACT=16,
        COLUMNS=columns,
        VALUES=values,
        num_warps=4,
    )


def are_few(query: Tensor, heads: int) -> bool:
    """Whether queries ``[rows, query heads, n, width]`` are so few that keys are taken in chunks."""
    return query.shape[1] // heads * query.shape[2] <= FEW


def chunks_of(tokens: Sequence[int]) -> int:
    """Of the longest head."""
    return max(1, -(-max(tokens) // CHUNK))


@lru_cache(maxsize=16)
def turning(width: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """By what `turned` multiplies: ones and minus ones ``[columns, columns]``, zero beyond the width, and a factor."""
    with torch.inference_mode(False):
        whole = turned(torch.eye(width, dtype=torch.float64))
        signs = F.pad(whole.sign(), (0, columns - width, 0, columns - width))
        return signs.to(device, dtype), float(whole.abs().max())
