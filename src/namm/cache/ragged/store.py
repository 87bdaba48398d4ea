"""The tokens that one layer keeps for all batch rows: one record a token, and a segment of records for every head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from namm.cache.ragged.kernels import attention, selection
from namm.cache.ragged.launching import launch, numbers, power_of_two, to_device
from namm.support.tensors import Column, round_up, writable

STARTS, BASES, ENDS, GAPS, HEALTH = range(5)  # rows of the table, see `namm.cache.ragged.kernels`
ALIGNED = 16  # bytes, of records and of the columns in them
MOVED = 64  # records that a program moves


class RaggedStore:
    """Keys, values, positions and policy state, ragged over heads and batch rows.

    The segment of head h of row b is number ``b * heads + h``. It owns the slots ``starts : starts + capacities``, of
    which the first `lengths` hold tokens. Between two updates nothing is reallocated, and on the device an append alone
    moves ends on. Invariants (see `check`): segments follow one another without gaps, a segment's positions rise
    strictly, free slots are zero in every column, and the table on the device says what is known here.

    Attributes:
        records: ``[slots, bytes]`` uint8, in which each token's columns lie side by side.
        table: ``[5, segments]`` int32, see `namm.cache.ragged.kernels`.
        lengths: tokens of each head of each row.
    """

    def __init__(self, rows: int, key_like: Tensor, value_like: Tensor, state: Mapping[str, Column]) -> None:
        self.heads = key_like.shape[1]
        columns = {
            "keys": Column((key_like.shape[-1],), key_like.dtype),
            "values": Column((value_like.shape[-1],), value_like.dtype),
            "positions": Column((), torch.int32),
            **state,
        }
        self._layout: dict[str, tuple[int, Column]] = {}
        self.record = 0
        for name, column in columns.items():
            aligned = ALIGNED if column.shape else 4
            self.record = -(-self.record // aligned) * aligned
            self._layout[name] = self.record, column
            self.record += math.prod(column.shape) * column.dtype.itemsize
        self.record = -(-self.record // ALIGNED) * ALIGNED
        self.lengths = [[0] * self.heads for _ in range(rows)]
        self.starts = [0] * (rows * self.heads)
        self.capacities = [0] * (rows * self.heads)
        self.records = torch.zeros(0, self.record, dtype=torch.uint8, device=key_like.device)
        self.table = torch.zeros(5, rows * self.heads, dtype=torch.int32, device=key_like.device)

    @property
    def device(self) -> torch.device:
        return self.records.device

    @property
    def segments(self) -> int:
        return len(self.starts)

    @property
    def slots(self) -> int:
        return self.records.shape[0]

    @property
    def flat_lengths(self) -> list[int]:
        return [length for row in self.lengths for length in row]

    @property
    def columns(self) -> dict[str, Tensor]:
        """Views ``[slots, ...]`` of every column."""
        return {name: self.column(name) for name in self._layout}

    def column(self, name: str) -> Tensor:
        """A view of a column, ``[slots, ...]``."""
        offset, column = self._layout[name]
        size = math.prod(column.shape) * column.dtype.itemsize
        return self.records[:, offset : offset + size].view(column.dtype).view(self.slots, *column.shape)

    def segment(self, row: int, head: int) -> int:
        return row * self.heads + head

    def head(self, row: int, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first; writing to them writes the store."""
        start = self.starts[self.segment(row, head)]
        return {name: column[start : start + self.lengths[row][head]] for name, column in self.columns.items()}

    def row_columns(self, row: int) -> dict[str, Tensor]:
        """Views ``[slots, ...]`` of all slots of a row."""
        first, last = row * self.heads, (row + 1) * self.heads
        begin = sum(self.capacities[:first])
        return {name: c[begin : begin + sum(self.capacities[first:last])] for name, c in self.columns.items()}

    def row_bytes(self, row: int, *names: str) -> int:
        """Bytes of a row's slots in the named columns; all that is held for it if none is named."""
        slots = sum(self.capacities[row * self.heads : (row + 1) * self.heads])
        sizes = [math.prod(column.shape) * column.dtype.itemsize for _, column in (self._layout[n] for n in names)]
        return slots * (sum(sizes) if names else self.record)

    def append(self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], ring: tuple[Tensor, int]) -> None:
        """Add the same tokens to every head of a row, for which there is room, and their queries to a ring.

        Args:
            query: ``[rows, query heads, n, width]``. keys, values: ``[rows, heads, n, width]``.
            new: of each row how many of the last there are.
            ring: see `namm.cache.ragged.ring.Ring`, and its capacity; 0: none is wanted.
        """
        rows, _, tokens, width = keys.shape
        query, keys, values = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, keys, values))
        held, positions = self.column("keys"), self.column("positions")
        size = min(32, power_of_two(tokens, 1))
        launch(
            attention.append,
            (self.segments, -(-tokens // size)),
            *(item for tensor in (query, keys, values) for item in (tensor, *tensor.stride()[:3])),
            held,
            self.column("values"),
            positions,
            held.stride(0),
            positions.stride(0),
            self.table,
            self.segments,
            numbers(tuple(new), self.device),
            tokens,
            ring[0],
            HEADS=self.heads,
            GROUP=query.shape[1] // self.heads,
            WIDTH=width,
            VALUE=values.shape[-1],
            LOOKS=ring[1] > 0,
            CAPACITY=max(1, ring[1]),
            TOKENS=size,
            COLUMNS=power_of_two(max(width, values.shape[-1])),
            num_warps=4,
        )
        self.lengths = [[length + count for length in row] for row, count in zip(self.lengths, new, strict=True)]

    def fill(self, rows: Sequence[Sequence[Mapping[str, Tensor]]], room: Sequence[int], seen: Sequence[int]) -> None:
        """Hold copies of the tokens of each head of each row, columns as in `head`; it is empty before.

        Args:
            room, seen: as of `move`.
        """
        lengths = [[len(own["positions"]) for own in row] for row in rows]
        self.move(self.lengths, [max(own) for own in lengths], [0] * len(rows))
        self.lengths = lengths
        for b, row in enumerate(rows):
            for h, own in enumerate(row):
                for name, into in self.head(b, h).items():
                    if name in own:
                        into.copy_(own[name])
        self.move(lengths, room, seen)

    def make_writable(self, state: bool = False) -> None:
        """Call before writing to views: what was made in inference mode is copied where that is over."""
        self.records = writable(self.records)

    def make_room(self, tokens: Sequence[int], seen: Sequence[int]) -> None:
        """Have room for so many more tokens of each row, which saw so many."""
        wanted = [length + more for own, more in zip(self.lengths, tokens, strict=True) for length in own]
        if any(need > there for need, there in zip(wanted, self.capacities, strict=True)):
            self.move(self.lengths, tokens, seen)

    def move(
        self,
        lengths: Sequence[Sequence[int]],
        room: Sequence[int],
        seen: Sequence[int],
        sources: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Move what stays to segments with room for more, and free all else.

        Args:
            lengths: of what stays of each head. room: tokens of each row that there is to be room for.
            seen: tokens of each row so far, which the next one has as its position.
            sources: ``[slots]`` int32, the indices of what stays of every segment from its first slot on; None: the
                first ones.
            rows: which rows these were; None: all, as they are.
        """
        device = self.device
        origins = range(len(self.lengths)) if rows is None else rows
        self.lengths = [list(row) for row in lengths]
        flat = self.flat_lengths
        roomy = [more for more in room for _ in range(self.heads)]
        capacities = [round_up(length + more) for length, more in zip(flat, roomy, strict=True)]
        starts = [0, *accumulate(capacities)]
        gaps = [saw - length for saw, own in zip(seen, self.lengths, strict=True) for length in own]
        from_ = [self.segment(row, head) for row in origins for head in range(self.heads)]
        # table, then what is needed for moving
        told = to_device([starts[:-1], flat, flat, gaps, [0] * len(flat), from_, capacities], device)
        records = torch.empty(starts[-1], self.record, dtype=torch.uint8, device=device)
        launch(
            selection.compact,
            (len(flat), -(-max(capacities, default=0) // MOVED)),
            self.records.view(torch.int32),
            self.table,
            self.segments,
            self.table if sources is None else sources,
            records.view(torch.int32),
            told,
            len(flat),
            told[5],
            told[6],
            ORDERED=sources is not None,
            WORDS=self.record // 4,
            SLOTS=MOVED,
            COLUMNS=min(128, power_of_two(self.record // 4)),
            num_warps=4,
        )
        self.records, self.table = records, told[:5]
        self.starts, self.capacities = starts[:-1], capacities

    def hide(self, gone: Tensor, before: Sequence[int], room: Sequence[int], seen: Sequence[int]) -> list[int]:
        """Forget the tokens at the positions that are gone, ``[rows, positions]`` bool; those after them move up.

        Args:
            before: a position for each row. room, seen: as of `move`, afterwards.

        Returns:
            How many tokens of each row's heads in all were gone before that position.
        """
        self.make_writable()
        moved_up = gone.cumsum(1).int()
        sources = torch.zeros(self.slots, dtype=torch.int32, device=self.device)
        lost, lengths = [], []
        for row, own in enumerate(self.lengths):
            lost.append(0)
            lengths.append([0] * len(own))
            for head in range(len(own)):
                positions, start = self.head(row, head)["positions"], self.starts[self.segment(row, head)]
                at = positions.long()
                hides = gone[row, at]
                lost[-1] += int((hides & (positions < before[row])).sum())
                positions -= moved_up[row, at]
                stays = (~hides).nonzero()[:, 0]
                lengths[-1][head] = len(stays)
                sources[start : start + len(stays)] = stays
        self.move(lengths, room, seen, sources)
        return lost

    def check(self, seen: Sequence[int]) -> None:
        """Raises AssertionError, naming the row and head, where an invariant does not hold of rows that saw so much."""
        end = 0
        starts, bases, ends, gaps, health = self.table.tolist()
        for segment, length in enumerate(self.flat_lengths):
            row, head = divmod(segment, self.heads)
            place = f"row {row}, head {head}"
            assert self.starts[segment] == end, f"{place} starts at {self.starts[segment]}, expected {end}"
            assert 0 <= length <= self.capacities[segment], f"{place} is longer than its segment"
            known = self.starts[segment], length, length, seen[row] - length, 0
            told = starts[segment], bases[segment], ends[segment], gaps[segment], health[segment]
            assert told == known, f"{place}: the device knows {told}, expected {known}"
            end += self.capacities[segment]
            positions = self.head(row, head)["positions"]
            assert bool((positions.diff() > 0).all()), f"{place}: positions do not rise"
            free = self.records[self.starts[segment] + length : end]
            assert not free.any(), f"{place}: free slots are not zero"
        assert self.slots == end, f"{self.slots} slots, expected {end}"
