"""Attention to tokens that are packed, without unpacking them: see `namm.cache.codes` for what the codes mean.

A key is ``centre + size * H x`` of its coded numbers x, so that its product with a query is ``query . centre + (H (size
* query)) . x``: the query is turned once instead of every key. Values are summed up as they are coded, and the sum is
turned. Sinks are exact. What is packed is older than every query. Where products are of 16 bits, a turned query, which
has more, is taken in two parts.
"""

import triton
import triton.language as tl

from namm.cache.ragged.kernels import part
from namm.cache.ragged.kernels.attention import LOG2E, NOTHING, bounded, product


@part
def decoded(
    codes,
    bounds,
    token,
    there,
    column,
    WIDTH: tl.constexpr,
    SHARED: tl.constexpr,
    BITS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Numbers ``[tokens, columns]`` float32, as they were coded."""
    mask = there[:, None] & (column < WIDTH)[None, :]
    if BITS == 4:
        byte = tl.load(codes + token[:, None] * (WIDTH // 2) + (column // 2)[None, :], mask=mask, other=0)
        code = (byte.to(tl.int32) >> (column % 2 * 4)[None, :]) & 15
    else:
        code = tl.load(codes + token[:, None] * WIDTH + column[None, :], mask=mask, other=0)
    at = bounds + token[:, None] * (2 * (WIDTH // SHARED)) + (column // SHARED * 2)[None, :]
    low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(at + 1, mask=mask, other=0.0).to(tl.float32)
    return low + code.to(tl.float32) * ((high - low) / MOST)


@part
def turned(x, matrix, HALF: tl.constexpr):
    """``[m, n]`` float32 times a matrix of ones and minus ones."""
    if HALF:
        high = x.to(matrix.dtype)
        low = (x - high.to(tl.float32)).to(matrix.dtype)
        found = tl.dot(high, matrix) + tl.dot(low, matrix)
    else:
        found = tl.dot(x, matrix.to(tl.float32), input_precision="ieee")
    return found


@triton.jit
def attend_packed(
    query,
    q_row,
    q_head,
    q_token,
    key_codes,
    key_bounds,
    value_codes,
    value_bounds,
    sink_keys,
    sink_values,
    frame,
    key_turn,
    key_scale,
    value_turn,
    value_scale,
    places,
    segments,
    new,
    tokens,
    part,
    part_normalisers,
    parts,
    first_part,
    scale,
    softcap,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    BITS: tl.constexpr,
    MOST: tl.constexpr,
    KEY_SHARED: tl.constexpr,
    VALUE_SHARED: tl.constexpr,
    CAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDEN: tl.constexpr,
    SPLIT: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """What new tokens' queries make of chunks of packed tokens, left to `combine`; sinks belong to the first chunk.

    Args: places: ``[4, segments]`` int32: where a segment's tokens begin, how many there are, and the same of its
        sinks, which are the first of these tokens. key_turn, value_turn: Hadamard matrices of ones and minus ones,
        ``[COLUMNS, COLUMNS]`` and ``[VALUES, VALUES]``, and what they are to be multiplied with. parts: chunks of a
        segment in `part`, the first of these is the `first_part`.
    """
    segment, chunk = tl.program_id(0), tl.program_id(1)
    row, head = segment // HEADS, segment % HEADS
    number = tl.arange(0, QUERIES)
    token, member = number // GROUP, number % GROUP
    real = (token < tokens) & (token >= tokens - tl.load(new + row))
    column, value = tl.arange(0, COLUMNS), tl.arange(0, VALUES)
    at = query + row * q_row + (head * GROUP + member) * q_head + token * q_token
    asked = tl.load(at[:, None] + column[None, :], mask=real[:, None] & (column < WIDTH)[None, :], other=0.0)
    start, count = tl.load(places + segment), tl.load(places + segments + segment)
    sink, exact = tl.load(places + 2 * segments + segment), tl.load(places + 3 * segments + segment)
    at = frame + segment * WIDTH + column
    centre = tl.load(at, mask=column < WIDTH, other=0.0)
    size = tl.load(at + segments * WIDTH, mask=column < WIDTH, other=0.0)
    plain = asked.to(tl.float32)
    beside = tl.sum(plain * centre[None, :], 1)
    turn = tl.load(key_turn + column[:, None] * COLUMNS + column[None, :])
    coded = turned(plain * (size * key_scale)[None, :], turn, HALF)
    high = coded.to(asked.dtype)
    low = (coded - high.to(tl.float32)).to(asked.dtype)
    highest = tl.full([QUERIES], NOTHING, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, VALUES], tl.float32)
    first, last = chunk * CHUNK, tl.minimum(count, chunk * CHUNK + CHUNK)
    for begin in range(first, last, KEYS):
        index = begin + tl.arange(0, KEYS)
        held = (index >= exact) & (index < last)
        slot = (start + index).to(tl.int64)
        keys = decoded(key_codes, key_bounds, slot, held, column, WIDTH, KEY_SHARED, BITS, MOST).to(asked.dtype)
        products = product(high, keys, WIDEN) + beside[:, None]
        if SPLIT:
            products += product(low, keys, WIDEN)
        logits = bounded(products * scale, softcap, CAPPED) * LOG2E
        logits = tl.where(held[None, :], logits, NOTHING)
        now = tl.maximum(highest, tl.max(logits, 1))
        paid = tl.where(held[None, :], tl.exp2(logits - now[:, None]), 0.0)
        less = tl.exp2(highest - now)
        values = decoded(value_codes, value_bounds, slot, held, value, VALUE, VALUE_SHARED, BITS, MOST).to(asked.dtype)
        if WIDEN:
            values = values.to(tl.float32)
        total = total * less + tl.sum(paid, 1)
        found = found * less[:, None] + tl.dot(paid.to(values.dtype), values, input_precision="ieee")
        highest = now
    turn = tl.load(value_turn + value[:, None] * VALUES + value[None, :])
    found = turned(found * value_scale, turn, HALF)
    if chunk == 0:
        index = tl.arange(0, EXACT)
        held = index < exact
        slot = (sink + index).to(tl.int64)
        keys = tl.load(
            sink_keys + slot[:, None] * WIDTH + column[None, :],
            mask=held[:, None] & (column < WIDTH)[None, :],
            other=0.0,
        )
        logits = bounded(product(asked, keys, WIDEN) * scale, softcap, CAPPED) * LOG2E
        logits = tl.where(held[None, :], logits, NOTHING)
        now = tl.maximum(highest, tl.max(logits, 1))
        paid = tl.where(held[None, :], tl.exp2(logits - now[:, None]), 0.0)
        less = tl.exp2(highest - now)
        values = tl.load(
            sink_values + slot[:, None] * VALUE + value[None, :],
            mask=held[:, None] & (value < VALUE)[None, :],
            other=0.0,
        )
        if WIDEN:
            values = values.to(tl.float32)
        total = total * less + tl.sum(paid, 1)
        found = found * less[:, None] + tl.dot(paid.to(values.dtype), values, input_precision="ieee")
        highest = now
    normaliser = tl.where(total > 0, highest + tl.log2(tl.maximum(total, 1e-37)), NOTHING)
    found = found / tl.where(total > 0, total, 1.0)[:, None]
    at = (segment * parts + first_part + chunk) * QUERIES + number
    tl.store(part + at[:, None] * VALUE + value[None, :], found, mask=(value < VALUE)[None, :])
    tl.store(part_normalisers + at, normaliser)
