"""Which tokens of the layers of a cache stay: one exact selection, with one wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.ragged.kernels import selection
from namm.cache.ragged.launching import launch, numbers
from namm.cache.ragged.store import RaggedStore
from namm.policies.grid import Grid, Places

SLOTS = 512  # tokens at once


@dataclass(frozen=True)
class Asked:
    """What a layer is asked about: rows that are not due, and newest tokens that are left out, stay as they are.

    Attributes:
        grid: the rows that are due.
        left_out: how many of the newest tokens of each of these are not asked about.
        asked: of each segment, how many of its oldest tokens the policy is asked about.
        judged: how many of these it is to score; the others stay in any case.
    """

    store: RaggedStore
    grid: Grid
    left_out: Sequence[int]
    asked: Sequence[int]
    judged: Sequence[int]

    @classmethod
    def of(cls, store: RaggedStore, grid: Grid, left_out: Sequence[int]) -> Asked:
        """Args: grid: as it is before any are left out."""
        asked, judged = [0] * store.segments, [0] * store.segments
        lengths = []
        for row, gone, undecided in zip(grid.rows, left_out, grid.undecided, strict=True):
            lengths.append([max(0, length - gone) for length in store.lengths[row]])
            for head, length in enumerate(lengths[-1]):
                segment = store.segment(row, head)
                asked[segment], judged[segment] = length, max(0, length - undecided)
        shown = Grid(
            grid.layer, grid.rows, grid.columns, lengths, grid.seen, grid.new, grid.undecided, grid.compared, grid.whole
        )
        return cls(store, shown, left_out, asked, judged)


@dataclass(frozen=True)
class Selected:
    """What stays of a layer.

    Attributes:
        lengths: of each head of each row.
        sources: ``[slots]`` int32, see `RaggedStore.move`.
        health: of each segment, see `namm.cache.ragged.kernels`.
    """

    lengths: list[list[int]]
    sources: Tensor
    health: list[int]


def bounds_of(layers: Sequence[Asked], places: Places) -> list[list[int]]:
    """Of all segments of all layers: asked about, certain, floor, most, and where the scores begin; and of the groups
    that share places, how many they share."""
    found: list[list[int]] = [[], [], [], [], []]
    before = 0
    for layer, rows in zip(layers, places.bounds, strict=True):
        own = dict(zip(layer.grid.rows, rows, strict=True))
        for segment, asked in enumerate(layer.asked):
            certain, floor, most = own.get(segment // layer.store.heads, (0, 0, 0))
            for into, value in zip(
                found, (asked, certain, floor, most, before + layer.store.starts[segment]), strict=True
            ):
                into.append(value)
        before += layer.store.slots
    left = [max(0, own) for rows in places.left or () for own in rows]
    return [*found, left + [0] * (len(found[0]) - len(left))]


def select(layers: Sequence[Asked], scores: Sequence[Tensor], bounds: Tensor, places: Places) -> list[Selected]:
    """What stays of all layers, whose scores are on one device.

    Args:
        scores: of each layer ``[slots]``. bounds: `bounds_of`, int32 on the device.
    """
    device, stride = bounds.device, bounds.shape[1]
    ends = _ends([layer.store.segments for layer in layers])
    slots = _ends([layer.store.slots for layer in layers])
    flat = scores[0] if len(scores) == 1 else torch.cat([own.to(device) for own in scores])
    marks = torch.empty(flat.shape, dtype=torch.int8, device=device)
    ranks = torch.empty(flat.shape, dtype=torch.int32, device=device)
    sources = torch.empty(flat.shape, dtype=torch.int32, device=device)
    answer = torch.empty(2, stride, dtype=torch.int32, device=device)
    thresholds = torch.empty(2, stride, dtype=torch.int32, device=device)
    limited = any(most < asked for most, asked in _limits(layers, places))
    tables = [layer.store.table.to(device) for layer in layers]
    for (first, last), (begin, end), table in zip(ends, slots, tables, strict=True):
        launch(
            selection.floors,
            (last - first,),
            flat[begin:end],
            table,
            last - first,
            bounds[:, first:last],
            stride,
            places.least or 0.0,
            ranks[begin:end],
            marks[begin:end],
            JUDGED=places.least is not None,
            LIMITED=limited,
            SLOTS=SLOTS,
            num_warps=8,
        )
    shared = places.left is not None
    if places.left is not None:
        members, groups = _groups(layers, len(places.left) == 1)
        launch(
            selection.winners,
            (groups,),
            ranks,
            marks,
            bounds[4],
            bounds,
            numbers(members, device),
            len(members) // groups,
            bounds[5],
            thresholds[0],
            thresholds[1],
            SLOTS=SLOTS,
            num_warps=8,
        )
    for (first, last), (begin, end), table in zip(ends, slots, tables, strict=True):
        launch(
            selection.order,
            (last - first,),
            ranks[begin:end],
            marks[begin:end],
            table,
            last - first,
            bounds[0, first:last],
            thresholds[0, first:last],
            thresholds[1, first:last],
            sources[begin:end],
            answer[:, first:last],
            stride,
            SHARED=shared,
            SLOTS=SLOTS,
            num_warps=8,
        )
    kept, health = answer.tolist()
    found = []
    for layer, (first, last), (begin, end) in zip(layers, ends, slots, strict=True):
        own, heads = kept[first:last], layer.store.heads
        lengths = [own[row : row + heads] for row in range(0, last - first, heads)]
        found.append(Selected(lengths, sources[begin:end].to(layer.store.device), health[first:last]))
    return found


def _ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of these sizes begin and end that lie one behind the other."""
    found, before = [], 0
    for size in sizes:
        found.append((before, before + size))
        before += size
    return found


def _limits(layers: Sequence[Asked], places: Places) -> list[tuple[int, int]]:
    """Of each row of each layer, how many tokens of a head may stay, and how many the longest one has."""
    return [
        (most, max(lengths))
        for layer, rows in zip(layers, places.bounds, strict=True)
        for (_, _, most), lengths in zip(rows, layer.grid.lengths, strict=True)
    ]


def _groups(layers: Sequence[Asked], all_together: bool) -> tuple[tuple[int, ...], int]:
    """Numbers of the segments that share places, group after group, and how many groups there are."""
    members: list[int] = []
    groups = 0
    firsts = [first for first, _ in _ends([layer.store.segments for layer in layers])]
    each = list(zip(layers, firsts, strict=True))
    for together in [each] if all_together else [[one] for one in each]:
        for row in together[0][0].grid.rows:
            groups += 1
            for layer, first in together:
                members += [first + layer.store.segment(row, head) for head in range(layer.store.heads)]
    return tuple(members), groups
