"""What new tokens pay: sums along their rows of attention, without a matrix of it."""

import triton
import triton.language as tl

from namm.cache.ragged.kernels.observation import held_at, paid_by

FLOOR = tl.constexpr(1e-4)
NEAR, FAR = tl.constexpr(16), tl.constexpr(128)


@triton.jit
def birth(
    held_keys,
    held_positions,
    records,
    position_records,
    state,
    state_records,
    table,
    segments,
    asked,
    ring,
    ring_normalisers,
    new,
    scale,
    softcap,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What the `new` newest tokens of some segments pay themselves; see `namm.memory.birth`."""
    segment = tl.load(asked + tl.program_id(0))
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    gap = tl.load(table + 3 * segments + segment)
    token, number = tl.arange(0, TOKENS), tl.arange(0, QUERIES)
    begin = tl.program_id(1) * TOKENS
    own = end - new + begin + token
    position = own + gap
    here = begin + token < new
    mean = tl.where((number // GROUP)[None, :] == token[:, None], 1.0 / GROUP, 0.0)
    itself, previous, first = (
        tl.zeros([TOKENS], tl.float32),
        tl.zeros([TOKENS], tl.float32),
        tl.zeros([TOKENS], tl.float32),
    )
    close, middle, beyond = (
        tl.zeros([TOKENS], tl.float32),
        tl.zeros([TOKENS], tl.float32),
        tl.zeros([TOKENS], tl.float32),
    )
    largest, squares = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.float32)
    for place in range(0, tl.minimum(end, end - new + begin + TOKENS), KEYS):
        index = place + tl.arange(0, KEYS)
        held = index < end
        slot = (start + index).to(tl.int64)
        keys, positions = held_at(held_keys, held_positions, records, position_records, slot, held, WIDTH, COLUMNS)
        each = paid_by(
            end - new + begin + gap, tl.minimum(TOKENS, new - begin), ring, ring_normalisers, segment, keys, positions,
            held, scale, softcap, GROUP, WIDTH, CAPPED, WIDEN, CAPACITY, QUERIES, COLUMNS,
        )  # fmt: skip
        paid = tl.dot(mean, tl.trans(each), input_precision="ieee")
        age = position[:, None] - positions[None, :]
        oldest = (positions == 0)[None, :]
        itself += tl.sum(tl.where(age == 0, paid, 0.0), 1)
        previous += tl.sum(tl.where(age == 1, paid, 0.0), 1)
        first += tl.sum(tl.where(oldest, paid, 0.0), 1)
        close += tl.sum(tl.where((age > 1) & (age <= NEAR), paid, 0.0), 1)
        middle += tl.sum(tl.where((age > NEAR) & (age <= FAR), paid, 0.0), 1)
        beyond += tl.sum(tl.where((age > FAR) & (positions > 0)[None, :], paid, 0.0), 1)
        largest = tl.maximum(largest, tl.max(tl.where((age > 1) & (positions > 0)[None, :], paid, 0.0), 1))
        squares += tl.sum(paid * paid, 1)
    at = state + (start + own).to(tl.int64) * state_records
    there = here & (own >= 0)
    kind = state.dtype.element_ty
    tl.store(at, tl.log(tl.maximum(itself, FLOOR)).to(kind), mask=there)
    tl.store(at + 1, tl.log(tl.maximum(previous, FLOOR)).to(kind), mask=there)
    tl.store(at + 2, tl.log(tl.maximum(first, FLOOR)).to(kind), mask=there)
    tl.store(at + 3, tl.log(tl.maximum(close, FLOOR)).to(kind), mask=there)
    tl.store(at + 4, tl.log(tl.maximum(middle, FLOOR)).to(kind), mask=there)
    tl.store(at + 5, tl.log(tl.maximum(beyond, FLOOR)).to(kind), mask=there)
    tl.store(at + 6, tl.log(tl.maximum(largest, FLOOR)).to(kind), mask=there)
    tl.store(at + 7, tl.log(tl.maximum(squares, FLOOR)).to(kind), mask=there)
