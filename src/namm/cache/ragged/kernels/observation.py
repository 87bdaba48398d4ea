"""What tokens were paid since the last update: spectrograms and sums, without a matrix of attention."""

import triton
import triton.language as tl

from namm.cache.ragged.kernels import part
from namm.cache.ragged.kernels.attention import LOG2E, NOTHING, logits_of

MOST = tl.constexpr(4096.0)  # by which attention is multiplied in float16, whose small numbers are coarse


@part
def held_at(
    held_keys, held_positions, records, position_records, slot, held, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """Keys ``[slots, COLUMNS]`` and positions of the slots that are held, zeros for the others."""
    column = tl.arange(0, COLUMNS)
    mask = held[:, None] & (column < WIDTH)[None, :]
    keys = tl.load(held_keys + slot[:, None] * records + column[None, :], mask=mask, other=0.0)
    return keys, tl.load(held_positions + slot * position_records, mask=held, other=0)


@part
def paid_by(
    first,
    count,
    ring,
    ring_normalisers,
    segment,
    keys,
    positions,
    held,
    scale,
    softcap,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    CAPACITY: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Attention ``[keys, QUERIES]`` that keys were paid by `count` queries of a group from a position on."""
    number = tl.arange(0, QUERIES)
    position = first + number // GROUP
    asked = number < count * GROUP
    column = tl.arange(0, COLUMNS)
    at = (segment * CAPACITY + (position + CAPACITY) % CAPACITY).to(tl.int64) * GROUP + number % GROUP
    query = tl.load(
        ring + at[:, None] * WIDTH + column[None, :], mask=asked[:, None] & (column < WIDTH)[None, :], other=0.0
    )
    normaliser = tl.load(ring_normalisers + at, mask=asked, other=float("inf"))
    seen = held[:, None] & asked[None, :] & (positions[:, None] <= position[None, :])
    logits = logits_of(keys, query, scale, softcap, CAPPED, WIDEN)
    return tl.where(seen, tl.exp2(logits - normaliser[None, :]), 0.0)


@triton.jit
def normalise(
    held_keys,
    held_positions,
    records,
    position_records,
    sinks,
    table,
    segments,
    asked,
    ring,
    ring_normalisers,
    queries,
    scale,
    softcap,
    HEADS: tl.constexpr,
    SINKS: tl.constexpr,
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
    """Log normalisers of the newest queries of some segments by what is left of the keys that they saw."""
    segment = tl.load(asked + tl.program_id(0))
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    number, column = tl.arange(0, QUERIES), tl.arange(0, COLUMNS)
    token, member = tl.program_id(1) * TOKENS + number // GROUP, number % GROUP
    position = end + tl.load(table + 3 * segments + segment) - queries + token
    there = (number < TOKENS * GROUP) & (token < queries)
    at = (segment * CAPACITY + (position + CAPACITY) % CAPACITY).to(tl.int64) * GROUP + member
    query = tl.load(
        ring + at[:, None] * WIDTH + column[None, :], mask=there[:, None] & (column < WIDTH)[None, :], other=0.0
    )
    highest = tl.full([QUERIES], NOTHING, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    if SINKS:
        highest = tl.load(sinks + segment % HEADS * GROUP + member).to(tl.float32) * LOG2E
        total += 1.0
    for begin in range(0, end, KEYS):
        index = begin + tl.arange(0, KEYS)
        held = index < end
        slot = (start + index).to(tl.int64)
        keys, positions = held_at(held_keys, held_positions, records, position_records, slot, held, WIDTH, COLUMNS)
        seen = held[:, None] & (positions[:, None] <= position[None, :])
        logits = tl.where(seen, logits_of(keys, query, scale, softcap, CAPPED, WIDEN), NOTHING)
        now = tl.maximum(highest, tl.max(logits, 0))
        total = total * tl.exp2(highest - now) + tl.sum(tl.where(seen, tl.exp2(logits - now[None, :]), 0.0), 0)
        highest = now
    known = there & (tl.load(ring_normalisers + at, mask=there, other=0.0) < float("inf"))
    tl.store(ring_normalisers + at, highest + tl.log2(tl.maximum(total, 1e-37)), mask=known)


@triton.jit
def spectrogram(
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
    cosines,
    sines,
    decays,
    bands,
    last_band,
    frames,
    scale,
    softcap,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    CAPACITY: tl.constexpr,
    HOP: tl.constexpr,
    CARRY: tl.constexpr,
    AVERAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    BANDS: tl.constexpr,
):
    """Carry the moving averages of some segments' tokens on by `frames` frames of the queries in the ring.

    It is attention turned over, with the transform in the place of values: of the two halves of a window ``[2, QUERIES,
    BINS]`` each, mean over the group included. The sine of bin 0 is nothing; the cosine of the last bin stands in its
    place.
    """
    segment = tl.load(asked + tl.program_id(0))
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    index = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    held = index < end
    slot = (start + index).to(tl.int64)
    bin, number = tl.arange(0, BINS), tl.arange(0, QUERIES)
    keys, positions = held_at(held_keys, held_positions, records, position_records, slot, held, WIDTH, COLUMNS)
    place = number[:, None] * BINS + bin[None, :]
    old_cosine, old_sine = tl.load(cosines + place), tl.load(sines + place)
    new_cosine, new_sine = tl.load(cosines + QUERIES * BINS + place), tl.load(sines + QUERIES * BINS + place)
    average = tl.program_id(2) * 2
    decay0, decay1 = tl.load(decays + average), tl.load(decays + average + 1)
    mean0, mean1 = tl.zeros([KEYS, BINS], tl.float32), tl.zeros([KEYS, BINS], tl.float32)
    top0, top1 = tl.zeros([KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
    first = end + tl.load(table + 3 * segments + segment) - frames * HOP - CARRY
    real, imaginary = tl.zeros([KEYS, BINS], tl.float32), tl.zeros([KEYS, BINS], tl.float32)
    for chunk in range(0, frames + CARRY // HOP):
        paid = paid_by(
            first + chunk * HOP, HOP, ring, ring_normalisers, segment, keys, positions, held, scale, softcap,
            GROUP, WIDTH, CAPPED, WIDEN, CAPACITY, QUERIES, COLUMNS,
        )  # fmt: skip
        paid = (paid * MOST).to(cosines.dtype.element_ty)
        real += tl.dot(paid, new_cosine, input_precision="ieee")
        imaginary += tl.dot(paid, new_sine, input_precision="ieee")
        # the first chunk completes no frame where windows overlap
        whole = chunk >= CARRY // HOP
        lone = (bin == 0)[None, :]
        size = tl.sqrt(real * real + tl.where(lone, 0.0, imaginary * imaginary))
        topmost = tl.sum(tl.where(lone, tl.abs(imaginary), 0.0), 1)
        mean0 = tl.where(whole, decay0 * mean0 + (1 - decay0) * size, mean0)
        mean1 = tl.where(whole, decay1 * mean1 + (1 - decay1) * size, mean1)
        top0 = tl.where(whole, decay0 * top0 + (1 - decay0) * topmost, top0)
        top1 = tl.where(whole, decay1 * top1 + (1 - decay1) * topmost, top1)
        real = tl.dot(paid, old_cosine, input_precision="ieee")
        imaginary = tl.dot(paid, old_sine, input_precision="ieee")
    channel = tl.arange(0, BANDS)
    share = tl.load(bands + bin[:, None] * BANDS + channel[None, :])
    top_share = tl.load(last_band + channel)
    at = state + slot[:, None] * state_records + average * CHANNELS + channel[None, :]
    mask = held[:, None] & (channel < CHANNELS)[None, :]
    found = tl.dot(mean0, share, input_precision="ieee") + top0[:, None] * top_share[None, :]
    before = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    left = tl.exp2(frames * tl.log2(decay0))
    tl.store(at, (found / MOST + left * before).to(state.dtype.element_ty), mask=mask)
    if AVERAGES > 1:
        mask = held[:, None] & ((channel < CHANNELS) & (channel * 0 + average + 1 < AVERAGES))[None, :]
        found = tl.dot(mean1, share, input_precision="ieee") + top1[:, None] * top_share[None, :]
        before = tl.load(at + CHANNELS, mask=mask, other=0.0).to(tl.float32)
        left = tl.exp2(frames * tl.log2(decay1))
        tl.store(at + CHANNELS, (found / MOST + left * before).to(state.dtype.element_ty), mask=mask)


@triton.jit
def received(
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
    queries,
    share,
    scale,
    softcap,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    CAPACITY: tl.constexpr,
    ADDS: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The attention that the newest queries paid every token of some segments, in sum times `share`."""
    segment = tl.load(asked + tl.program_id(0))
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    index = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    held = index < end
    slot = (start + index).to(tl.int64)
    keys, positions = held_at(held_keys, held_positions, records, position_records, slot, held, WIDTH, COLUMNS)
    first = end + tl.load(table + 3 * segments + segment) - queries
    found = tl.zeros([KEYS], tl.float32)
    for begin in range(0, queries, TOKENS):
        paid = paid_by(
            first + begin, tl.minimum(TOKENS, queries - begin), ring, ring_normalisers, segment, keys, positions, held,
            scale, softcap, GROUP, WIDTH, CAPPED, WIDEN, CAPACITY, QUERIES, COLUMNS,
        )  # fmt: skip
        found += tl.sum(paid, 1)
    found = found * share
    at = state + slot * state_records
    if ADDS:
        found += tl.load(at, mask=held, other=0.0)
    tl.store(at, found, mask=held)


@triton.jit
def widest(source, state, state_records, table, segments, asked, WIDTH: tl.constexpr, SLOTS: tl.constexpr):
    """The largest of a number and those of its neighbours in the segment."""
    segment = tl.load(asked + tl.program_id(0))
    end, start = tl.load(table + 2 * segments + segment), tl.load(table + segment)
    index = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    found = tl.full([SLOTS], float("-inf"), tl.float32)
    for away in range(-(WIDTH // 2), WIDTH // 2 + 1):
        near = index + away
        found = tl.maximum(found, tl.load(source + start + near, mask=(near >= 0) & (near < end), other=float("-inf")))
    tl.store(state + (start + index).to(tl.int64) * state_records, found, mask=index < end)
