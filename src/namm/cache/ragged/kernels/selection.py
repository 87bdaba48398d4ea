"""Which tokens stay, exactly as a stable sort from the highest score on would have it, and moving these together.

A score's rank is a whole number of 32 bits; thresholds are found four bits at a time. Of a segment
the newest tokens from ``asked`` on are not asked about, and the ``certain`` newest of the others stay in any case.
"""

import triton
import triton.language as tl


@triton.jit
def floors(
    scores,
    table,
    segments,
    bounds,
    stride,
    least,
    ranks,
    marks,
    JUDGED: tl.constexpr,
    LIMITED: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Of each segment the ranks, what stays whatever the others have (mark 2), and what may win a place (1).

    Args: bounds: ``[4, stride]`` asked, certain, floor, most. least: where each token is `JUDGED` by itself, its score
        must not be below that; if more than `most` are not, the best of them stay.
    """
    segment = tl.program_id(0)
    start = tl.load(table + segment)
    asked, certain = tl.load(bounds + segment), tl.load(bounds + stride + segment)
    floor, most = tl.load(bounds + 2 * stride + segment), tl.load(bounds + 3 * stride + segment)
    older = tl.maximum(asked - certain, 0)
    wrong, passed = start * 0, start * 0
    for begin in range(0, asked, SLOTS):
        index = begin + tl.arange(0, SLOTS)
        score = tl.load(scores + start + index, mask=index < asked, other=0.0)
        wrong += tl.sum((score != score).to(tl.int32), 0)
        passed += tl.sum(((score >= least) & (index < older)).to(tl.int32), 0)
        bits = (score + 0.0).to(tl.int32, bitcast=True)  # the two zeros are one
        tl.store(ranks + start + index, bits ^ ((bits >> 31) & 0x7FFFFFFF), mask=index < asked)
    health = table + 4 * segments + segment
    tl.store(health, tl.load(health) | 2, mask=wrong > 0)
    tl.debug_barrier()  # ranks are read by other threads than wrote them
    if JUDGED:
        floor = tl.where(passed + tl.minimum(certain, asked) > most, most, 0)
    wanted, limit = tl.maximum(floor - certain, 0), tl.maximum(most - certain, 0)
    digit = tl.arange(0, 16)
    low, high = start * 0 + (-2147483647 - 1), start * 0 + (-2147483647 - 1)
    for step in range(0, 8):
        shift = 28 - 4 * step
        over_low, over_high = digit * 0, digit * 0
        for begin in range(0, older, SLOTS):
            index = begin + tl.arange(0, SLOTS)
            there = (index < older)[:, None]
            rank = tl.load(ranks + start + index, mask=index < older, other=0)[:, None]
            over_low += tl.sum((there & (rank >= (low + (digit << shift))[None, :])).to(tl.int32), 0)
            if LIMITED:
                over_high += tl.sum((there & (rank >= (high + (digit << shift))[None, :])).to(tl.int32), 0)
        low += tl.sum(((over_low >= wanted) & (digit > 0)).to(tl.int32), 0) << shift
        if LIMITED:
            high += tl.sum(((over_high >= limit) & (digit > 0)).to(tl.int32), 0) << shift
    ties_low, ties_high = wanted, limit
    for begin in range(0, older, SLOTS):
        index = begin + tl.arange(0, SLOTS)
        rank = tl.load(ranks + start + index, mask=index < older, other=0)
        ties_low -= tl.sum(((rank > low) & (index < older)).to(tl.int32), 0)
        ties_high -= tl.sum(((rank > high) & (index < older)).to(tl.int32), 0)
    for begin in range(0, asked, SLOTS):
        index = begin + tl.arange(0, SLOTS)
        there = index < older
        rank = tl.load(ranks + start + index, mask=there, other=0)
        equal = (there & (rank == low)).to(tl.int32)
        stays = there & ((rank > low) | ((equal > 0) & (tl.cumsum(equal, 0) <= ties_low)))
        ties_low -= tl.sum(equal, 0)
        opens = there
        if JUDGED:
            passes = tl.load(scores + start + index, mask=there, other=0.0) >= least
            opens = there & (index < 0)
            stays = there & ((stays & (floor > 0)) | (passes & (floor == 0)))
        elif LIMITED:
            equal = (there & (rank == high)).to(tl.int32)
            opens = there & ((rank > high) | ((equal > 0) & (tl.cumsum(equal, 0) <= ties_high)))
            ties_high -= tl.sum(equal, 0)
        mark = tl.where(stays | (index >= older), 2, tl.where(opens, 1, 0))
        tl.store(marks + start + index, mark.to(tl.int8), mask=index < asked)


@triton.jit
def winners(ranks, marks, starts, bounds, members, count, places, thresholds, ties, SLOTS: tl.constexpr):
    """Share `places` out over the marked tokens of some segments, the highest scores first.

    Args: starts: ``[segments]`` of their ranks. bounds: as of `floors`. members: ``[groups, count]`` numbers of
        segments, in the order that decides between equal scores. thresholds, ties: ``[segments]``, ranks to be
        above, and how many of those that are equal win.
    """
    group = tl.program_id(0)
    left = tl.load(places + group)
    digit = tl.arange(0, 16)
    threshold = left * 0 + (-2147483647 - 1)
    for step in range(0, 8):
        shift = 28 - 4 * step
        over = digit * 0
        for member in range(0, count):
            segment = tl.load(members + group * count + member)
            start, asked = tl.load(starts + segment), tl.load(bounds + segment)
            for begin in range(0, asked, SLOTS):
                index = begin + tl.arange(0, SLOTS)
                opens = tl.load(marks + start + index, mask=index < asked, other=0) == 1
                rank = tl.load(ranks + start + index, mask=opens, other=0)[:, None]
                over += tl.sum((opens[:, None] & (rank >= (threshold + (digit << shift))[None, :])).to(tl.int32), 0)
        threshold += tl.sum(((over >= left) & (digit > 0)).to(tl.int32), 0) << shift
    for member in range(0, count):
        segment = tl.load(members + group * count + member)
        start, asked = tl.load(starts + segment), tl.load(bounds + segment)
        for begin in range(0, asked, SLOTS):
            index = begin + tl.arange(0, SLOTS)
            opens = tl.load(marks + start + index, mask=index < asked, other=0) == 1
            rank = tl.load(ranks + start + index, mask=opens, other=0)
            left -= tl.sum((opens & (rank > threshold)).to(tl.int32), 0)
    for member in range(0, count):
        segment = tl.load(members + group * count + member)
        start, asked = tl.load(starts + segment), tl.load(bounds + segment)
        tl.store(thresholds + segment, threshold)
        tl.store(ties + segment, left)
        for begin in range(0, asked, SLOTS):
            index = begin + tl.arange(0, SLOTS)
            opens = tl.load(marks + start + index, mask=index < asked, other=0) == 1
            rank = tl.load(ranks + start + index, mask=opens, other=0)
            left -= tl.sum((opens & (rank == threshold)).to(tl.int32), 0)


@triton.jit
def order(
    ranks,
    marks,
    table,
    segments,
    bounds,
    thresholds,
    ties,
    sources,
    answer,
    stride,
    SHARED: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Of each segment the indices of what stays, oldest first, into the slots of ``sources``; ``answer [2, stride]`` is
    told how many and the health."""
    segment = tl.program_id(0)
    start, end = tl.load(table + segment), tl.load(table + 2 * segments + segment)
    asked = tl.load(bounds + segment)
    threshold, quota = start * 0, start * 0
    if SHARED:
        threshold, quota = tl.load(thresholds + segment), tl.load(ties + segment)
    placed = start * 0
    for begin in range(0, end, SLOTS):
        index = begin + tl.arange(0, SLOTS)
        mark = tl.load(marks + start + index, mask=index < asked, other=0)
        stays = (mark == 2) | ((index >= asked) & (index < end))
        if SHARED:
            opens = mark == 1
            rank = tl.load(ranks + start + index, mask=opens, other=0)
            equal = (opens & (rank == threshold)).to(tl.int32)
            stays = stays | (opens & (rank > threshold)) | ((equal > 0) & (tl.cumsum(equal, 0) <= quota))
            quota -= tl.sum(equal, 0)
        goes = stays.to(tl.int32)
        tl.store(sources + start + placed + tl.cumsum(goes, 0) - 1, index, mask=stays)
        placed += tl.sum(goes, 0)
    tl.store(answer + segment, placed)
    tl.store(answer + stride + segment, tl.load(table + 4 * segments + segment))


@triton.jit
def compact(
    records,
    table,
    old_segments,
    sources,
    moved_records,
    moved_table,
    segments,
    origins,
    capacities,
    ORDERED: tl.constexpr,
    WORDS: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Move all columns of what stays of every segment to where the segment now is; what is free there becomes zero."""
    segment = tl.program_id(0)
    index = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    own = index < tl.load(capacities + segment)
    held = index < tl.load(moved_table + 2 * segments + segment)
    old = tl.load(table + tl.load(origins + segment))
    source = index
    if ORDERED:
        source = tl.load(sources + old + index, mask=held, other=0)
    source = (old + source).to(tl.int64) * WORDS
    into = (tl.load(moved_table + segment) + index).to(tl.int64) * WORDS
    for first in range(0, WORDS, COLUMNS):
        word = first + tl.arange(0, COLUMNS)
        inside = (word < WORDS)[None, :]
        found = tl.load(records + source[:, None] + word[None, :], mask=held[:, None] & inside, other=0)
        tl.store(moved_records + into[:, None] + word[None, :], found, mask=own[:, None] & inside)
