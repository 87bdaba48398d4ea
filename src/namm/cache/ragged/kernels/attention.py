"""Storing new tokens, and attention of the newest tokens' own queries to all that a head holds."""

import triton
import triton.language as tl

from namm.cache.ragged.kernels import part

NOTHING = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)


@part
def logits_of(query, keys, scale, softcap, CAPPED: tl.constexpr, WIDEN: tl.constexpr):
    """Base-2 logits ``[m, n]`` of queries ``[m, width]`` and keys ``[n, width]``."""
    return bounded(product(query, keys, WIDEN) * scale, softcap, CAPPED) * LOG2E


@part
def product(query, keys, WIDEN: tl.constexpr):
    """``[m, n]`` of queries ``[m, width]`` and keys ``[n, width]``."""
    if WIDEN:  # the interpreter multiplies bfloat16 as whole numbers
        query, keys = query.to(tl.float32), keys.to(tl.float32)
    return tl.dot(query, tl.trans(keys), input_precision="ieee")


@part
def bounded(logits, softcap, CAPPED: tl.constexpr):
    """Logits, softly bound to plus and minus a softcap if there is one."""
    if CAPPED:
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)  # tanh
    return logits


@triton.jit
def append(
    query,
    q_row,
    q_head,
    q_token,
    keys,
    k_row,
    k_head,
    k_token,
    values,
    v_row,
    v_head,
    v_token,
    held_keys,
    held_values,
    held_positions,
    records,
    position_records,
    table,
    segments,
    new,
    tokens,
    ring,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    LOOKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the last `new` of some tokens to every head of a row, and their queries to the ring; tell the new ends."""
    segment = tl.program_id(0)
    row, head = segment // HEADS, segment % HEADS
    count = tl.load(new + row)
    base, gap = tl.load(table + segments + segment), tl.load(table + 3 * segments + segment)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    real = (token < tokens) & (token >= tokens - count)
    index = base + token - (tokens - count)
    slot = (tl.load(table + segment) + index).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = real[:, None] & (column < WIDTH)[None, :]
    source = keys + row * k_row + head * k_head + token[:, None] * k_token + column[None, :]
    tl.store(held_keys + slot[:, None] * records + column[None, :], tl.load(source, mask=mask), mask=mask)
    given = real[:, None] & (column < VALUE)[None, :]
    source = values + row * v_row + head * v_head + token[:, None] * v_token + column[None, :]
    tl.store(held_values + slot[:, None] * records + column[None, :], tl.load(source, mask=given), mask=given)
    tl.store(held_positions + slot * position_records, index + gap, mask=real)
    if LOOKS:
        mask = mask & (token >= tokens - CAPACITY)[:, None]
        into = ((segment * CAPACITY + (index + gap) % CAPACITY) * GROUP).to(tl.int64)
        for member in range(GROUP):
            source = query + row * q_row + (head * GROUP + member) * q_head + token[:, None] * q_token + column[None, :]
            tl.store(ring + (into + member)[:, None] * WIDTH + column[None, :], tl.load(source, mask=mask), mask=mask)
    if tl.program_id(1) == 0:
        tl.store(table + 2 * segments + segment, base + count)


@triton.jit
def attend(
    query,
    q_row,
    q_head,
    q_token,
    held_keys,
    held_values,
    records,
    output,
    table,
    segments,
    new,
    tokens,
    ring_normalisers,
    sinks,
    part,
    part_normalisers,
    parts,
    scale,
    softcap,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    LOOKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDEN: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Causal attention of new tokens, query heads of a group side by side; by chunks of keys where `CHUNK` is not 0.

    Output and log normalisers are final without chunks; else `part` ``[segments, parts, QUERIES, value width]`` and
    `part_normalisers` are left to `combine`, of which these chunks are the first parts.
    """
    segment, chunk = tl.program_id(1), tl.program_id(2)
    row, head = segment // HEADS, segment % HEADS
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    number = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    token, member = number // GROUP, number % GROUP
    own = end - tokens + token  # index of the query's own token
    real = (token < tokens) & (token >= tokens - tl.load(new + row))
    column, value = tl.arange(0, COLUMNS), tl.arange(0, VALUES)
    at = query + row * q_row + (head * GROUP + member) * q_head + token * q_token
    asked = tl.load(at[:, None] + column[None, :], mask=real[:, None] & (column < WIDTH)[None, :], other=0.0)
    if SINKS:
        highest = tl.load(sinks + head * GROUP + member).to(tl.float32) * LOG2E
        highest = tl.where(chunk == 0, highest, NOTHING)
        total = tl.where(chunk == 0, 1.0, 0.0) + tl.zeros([QUERIES], tl.float32)
    else:
        highest = tl.full([QUERIES], NOTHING, tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, VALUES], tl.float32)
    first, last = 0, tl.minimum(end, end - tokens + (tl.program_id(0) * QUERIES + QUERIES - 1) // GROUP + 1)
    if CHUNK > 0:
        first, last = chunk * CHUNK, tl.minimum(last, chunk * CHUNK + CHUNK)
    for begin in range(first, last, KEYS):
        index = begin + tl.arange(0, KEYS)
        slot = (start + index).to(tl.int64) * records
        held = index < last
        keys = tl.load(
            held_keys + slot[:, None] + column[None, :], mask=held[:, None] & (column < WIDTH)[None, :], other=0.0
        )
        seen = (index[None, :] <= own[:, None]) & held[None, :]
        logits = tl.where(seen, logits_of(asked, keys, scale, softcap, CAPPED, WIDEN), NOTHING)
        now = tl.maximum(highest, tl.max(logits, 1))
        paid = tl.where(seen, tl.exp2(logits - now[:, None]), 0.0)
        less = tl.exp2(highest - now)
        values = tl.load(
            held_values + slot[:, None] + value[None, :], mask=held[:, None] & (value < VALUE)[None, :], other=0.0
        )
        if WIDEN:
            values = values.to(tl.float32)
        total = total * less + tl.sum(paid, 1)
        found = found * less[:, None] + tl.dot(paid.to(values.dtype), values, input_precision="ieee")
        highest = now
    normaliser = tl.where(total > 0, highest + tl.log2(tl.maximum(total, 1e-37)), NOTHING)
    found = found / tl.where(total > 0, total, 1.0)[:, None]
    if CHUNK > 0:
        at = (segment * parts + chunk) * QUERIES + tl.arange(0, QUERIES)
        tl.store(part + at[:, None] * VALUE + value[None, :], found, mask=(value < VALUE)[None, :])
        tl.store(part_normalisers + at, normaliser)
    else:
        finish(
            found, normaliser, real, token, member, row, head, segment, output, table, segments, tokens,
            ring_normalisers, own + tl.load(table + 3 * segments + segment),
            HEADS, GROUP, VALUE, LOOKS, CAPACITY, VALUES,
        )  # fmt: skip
    if (tl.program_id(0) == 0) & (chunk == 0):  # nobody reads it before the next call
        tl.store(table + segments + segment, end)


@triton.jit
def combine(
    part,
    part_normalisers,
    chunks,
    output,
    table,
    segments,
    new,
    tokens,
    ring_normalisers,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
    LOOKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    QUERIES: tl.constexpr,
    VALUES: tl.constexpr,
):
    """What chunks of keys gave, as one."""
    segment = tl.program_id(0)
    row, head = segment // HEADS, segment % HEADS
    number = tl.arange(0, QUERIES)
    token, member = number // GROUP, number % GROUP
    real = (token < tokens) & (token >= tokens - tl.load(new + row))
    value = tl.arange(0, VALUES)
    highest = tl.full([QUERIES], NOTHING, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, VALUES], tl.float32)
    for chunk in range(0, chunks):
        at = (segment * chunks + chunk) * QUERIES + number
        normaliser = tl.load(part_normalisers + at)
        own = tl.load(part + at[:, None] * VALUE + value[None, :], mask=(value < VALUE)[None, :], other=0.0)
        now = tl.maximum(highest, normaliser)
        less = tl.exp2(highest - now)
        worth = tl.where(normaliser > NOTHING, tl.exp2(normaliser - now), 0.0)
        total = total * less + worth
        found = found * less[:, None] + own * worth[:, None]
        highest = now
    normaliser = tl.where(total > 0, highest + tl.log2(tl.maximum(total, 1e-37)), NOTHING)
    found = found / tl.where(total > 0, total, 1.0)[:, None]
    position = tl.load(table + 2 * segments + segment) - tokens + token + tl.load(table + 3 * segments + segment)
    finish(
        found, normaliser, real, token, member, row, head, segment, output, table, segments, tokens,
        ring_normalisers, position, HEADS, GROUP, VALUE, LOOKS, CAPACITY, VALUES,
    )  # fmt: skip


@part
def finish(
    found,
    normaliser,
    real,
    token,
    member,
    row,
    head,
    segment,
    output,
    table,
    segments,
    tokens,
    ring_normalisers,
    position,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
    LOOKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Write output ``[rows, tokens, query heads, value width]``, normalisers to the ring; note what is no number."""
    value = tl.arange(0, VALUES)
    at = ((row * tokens + token) * HEADS * GROUP + head * GROUP + member).to(tl.int64) * VALUE
    there = (token < tokens)[:, None] & (value < VALUE)[None, :]
    found = tl.where(real[:, None], found, 0.0)
    tl.store(output + at[:, None] + value[None, :], found.to(output.dtype.element_ty), mask=there)
    wrong = tl.sum(tl.where((found - found != 0.0) & there, 1, 0))
    tl.store(table + 4 * segments + segment, 1, mask=wrong > 0)
    if LOOKS:
        into = (segment * CAPACITY + position % CAPACITY) * GROUP + member
        tl.store(ring_normalisers + into, normaliser, mask=real & (token >= tokens - CAPACITY))
