"""The tokens that one layer keeps for all batch rows and heads, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.support.tensors import SEGMENT, Column, round_up, steps, writable

FREE = -1  # the position of a slot without a token


class GridStore:
    """Keys, values, positions and policy state, ``[rows, heads, slots, ...]``, the newest token of every head last.

    Of head h of row b the slots ``end - lengths[b][h] : end`` hold tokens. Invariants (see `check`): positions rise
    strictly within them; all other slots are zero in every column, and at the position -1.

    Attributes:
        columns: name -> ``[rows, heads, slots, ...]``, see `namm.cache.storage.TokenStore`.
        end: slots before the room for tokens to come, of which there is at least one.
        lengths: tokens of each head of each row.
    """

    def __init__(self, rows: int, key_like: Tensor, value_like: Tensor, state: Mapping[str, Column]) -> None:
        heads, device = key_like.shape[1], key_like.device
        self.columns = {
            "keys": key_like.new_zeros(rows, heads, 0, key_like.shape[-1]),
            "values": value_like.new_zeros(rows, heads, 0, value_like.shape[-1]),
            "positions": torch.zeros(rows, heads, 0, dtype=torch.int32, device=device),
        }
        self.end = 0
        self.lengths = [[0] * heads for _ in range(rows)]
        self._state = dict(state)

    @classmethod
    def of(cls, rows: Sequence[Sequence[Mapping[str, Tensor]]], state: Mapping[str, Column]) -> GridStore:
        """With copies of the tokens of each head of each row, columns as in `head`."""
        first = rows[0][0]
        keys, values = (first[name].expand(1, len(rows[0]), -1, -1) for name in ("keys", "values"))
        made = cls(len(rows), keys, values, state)
        made.lengths = [[len(own["positions"]) for own in row] for row in rows]
        made.end = made.longest
        for name, like in first.items():
            shape = len(rows), len(rows[0]), round_up(made.end + 1), *like.shape[1:]
            made.columns[name] = like.new_full(shape, FREE if name == "positions" else 0)
            for b, row in enumerate(rows):
                for h, own in enumerate(row):
                    made.head(b, h)[name].copy_(own[name])
        return made

    @property
    def device(self) -> torch.device:
        return self.columns["positions"].device

    @property
    def slots(self) -> int:
        return self.columns["positions"].shape[2]

    @property
    def longest(self) -> int:
        return max(max(row) for row in self.lengths)

    def head(self, row: int, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first; writing to them writes the store."""
        held = slice(self.end - self.lengths[row][head], self.end)
        return {name: column[row, head, held] for name, column in self.columns.items()}

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, new: Sequence[int]) -> None:
        """Add the same tokens to every head of a row.

        Args:
            keys: ``[rows, heads, n, width]``. values: ``[rows, heads, n, value width]``.
            positions: ``[rows or 1, n]`` integers, newer than all that is stored.
            new: of each row how many of the last there are; the others are at the position -1.
        """
        tokens = keys.shape[2]
        if self.end + tokens >= self.slots:
            self._grow(max(tokens, min(SEGMENT, self.longest // 4)))  # of a cache that grows by single tokens
        self.make_writable()
        into = slice(self.end, self.end + tokens)
        for name, given in (("keys", keys), ("values", values), ("positions", positions[:, None])):
            self.columns[name][:, :, into] = given
        self.end += tokens
        self.lengths = [[length + count for length in row] for row, count in zip(self.lengths, new, strict=True)]
        if any(count != tokens for count in new):
            self._gather(self.columns["positions"][:, :, : self.end] != FREE)

    def make_writable(self, state: bool = False) -> None:
        """Call before writing: columns of inference mode are copied where that is over; with `state`, all are there."""
        shape, device = self.columns["positions"].shape, self.columns["positions"].device
        for name, column in self._state.items() if state else ():
            if name not in self.columns:
                self.columns[name] = torch.zeros(*shape, *column.shape, dtype=column.dtype, device=device)
        self.columns = {name: writable(column) for name, column in self.columns.items()}

    def keep(self, stays: Tensor) -> None:
        """Forget all tokens but some and free their memory.

        Args:
            stays: ``[rows, heads, end]`` bool, False where there is no token.
        """
        self.lengths = stays.sum(-1).tolist()
        self._gather(stays)

    def hide(self, gone: Tensor, before: Sequence[int]) -> list[int]:
        """Forget the tokens at the positions that are gone, ``[rows, positions]`` bool; those after them move up.

        Args:
            before: a position for each row.

        Returns:
            How many tokens of each row's heads in all were gone before that position.
        """
        self.make_writable()
        positions = self.columns["positions"][:, :, : self.end]
        there, flat = positions != FREE, positions.flatten(1).clamp_min(0).long()
        hides = gone.gather(1, flat).view_as(positions) & there
        limits = torch.tensor(before, device=gone.device)[:, None, None]
        lost: list[int] = (hides & (positions < limits)).sum((1, 2)).tolist()
        positions -= gone.cumsum(1).gather(1, flat).view_as(positions).int() * there
        self.keep(there & ~hides)
        return lost

    def select(self, order: Tensor) -> None:
        """Have the rows ``[rows]`` int64 in another order."""
        self.columns = {name: column.index_select(0, order.to(column.device)) for name, column in self.columns.items()}
        self.lengths = [list(self.lengths[row]) for row in order.tolist()]

    def row_columns(self, row: int) -> dict[str, Tensor]:
        """Views ``[heads * slots, ...]`` of all slots of a row."""
        return {name: column[row].flatten(0, 1) for name, column in self.columns.items()}

    def row_bytes(self, row: int, *names: str) -> int:
        """Bytes of a row's slots of the named columns (all if none is named)."""
        columns = [self.columns[name] for name in names or self.columns]
        return sum(column[row].numel() * column.element_size() for column in columns)

    def check(self, seen: Sequence[int]) -> None:
        """Raises AssertionError, naming the row and head, where an invariant does not hold of rows that saw so much."""
        for row, lengths in enumerate(self.lengths):
            for head, length in enumerate(lengths):
                place = f"row {row}, head {head}"
                positions = self.columns["positions"][row, head]
                held = self.head(row, head)["positions"]
                assert 0 <= length <= self.end < max(1, self.slots), f"{place} is longer than its slots"
                assert bool((held.diff() > 0).all()) and bool((held >= 0).all()), f"{place}: positions do not rise"
                free = positions == FREE
                assert int(free.sum()) == self.slots - length, f"{place}: a free slot has a position"
                for name, column in self.columns.items():
                    if name != "positions":
                        assert not column[row, head][free].any(), f"{place}: free {name!r} not zero"

    def _grow(self, tokens: int) -> None:
        """Room for so many more tokens; slots that are free in every head go."""
        held = slice(self.end - self.longest, self.end)
        length, slots = self.longest, round_up(self.longest + tokens + 1)
        for name, column in self.columns.items():
            fresh = column.new_full((*column.shape[:2], slots, *column.shape[3:]), FREE if name == "positions" else 0)
            fresh[:, :, :length] = column[:, :, held]
            self.columns[name] = fresh
        self.end = length

    def _gather(self, stays: Tensor) -> None:
        """Have what stays ``[rows, heads, end]`` bool, `lengths` of each head, last, in no more slots than needed."""
        rows, heads, _ = stays.shape
        width, device = self.longest, stays.device
        kept, order = (sorted_[..., self.end - width :] for sorted_ in stays.sort(dim=-1, stable=True))
        order = torch.where(kept, order, self.end)  # the slot at the end is free
        first = steps(rows * heads, device).view(rows, heads, 1) * self.slots
        flat = F.pad(order, (0, 1), value=self.end).add_(first).flatten()
        for name, column in self.columns.items():
            found = column.flatten(0, 2).index_select(0, flat)
            self.columns[name] = found.view(rows, heads, width + 1, *column.shape[3:])
        self.end = width


def positions_of(seen: Sequence[int], new: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Positions ``[rows or 1, tokens]`` int64 of new tokens, of which each row's last `new` are some."""
    if len(set(seen)) == 1 and all(count == tokens for count in new):
        return steps(seen[0] + tokens, device)[None, seen[0] :]
    ends = torch.tensor([[before + count, count] for before, count in zip(seen, new, strict=True)])
    stop, counts = ends.to(device).T[..., None]
    back = tokens - steps(tokens, device)
    return (stop - back).masked_fill_(back > counts, FREE)
