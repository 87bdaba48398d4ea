"""Attention of the newest tokens to all that a store holds, as kernels do it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.ragged.kernels import attention
from namm.cache.ragged.launching import launch, numbers, power_of_two, widens
from namm.cache.ragged.ring import Ring
from namm.cache.ragged.store import RaggedStore

CHUNK = 256  # keys that a program of decoding takes, so that a long head keeps nobody waiting
FEW = 64  # queries of a group, up to which there are chunks


def attend(store: RaggedStore, query: Tensor, new: Sequence[int], form: AttentionForm, ring: Ring | None) -> Tensor:
    """Causal attention of the newest tokens' own queries, whose log normalisers go to the ring.

    Args:
        query: ``[rows, query heads, n, width]``, of which each row's last `new` are some.

    Returns:
        ``[rows, query heads, n, value width]``, zeros for the others.
    """
    rows, query_heads, tokens, width = query.shape
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys, values = store.column("keys"), store.column("values")
    value, group, device = values.shape[1], query_heads // store.heads, query.device
    output = query.new_empty(rows, tokens, query_heads, value)
    chunked = tokens * group <= FEW
    queries = power_of_two(tokens * group) if chunked else 64
    chunks = max(1, -(-max(store.capacities) // CHUNK)) if chunked else 1
    part = query.new_empty(store.segments, chunks, queries, value, dtype=torch.float32) if chunked else output
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
    if chunked:
        launch(
            attention.combine,
            (store.segments,),
            part,
            part_normalisers,
            chunks,
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
