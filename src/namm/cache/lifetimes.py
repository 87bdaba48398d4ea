"""Which tokens each head of a batch row held in each block of one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm.cache.engine import HeldRow


@dataclass
class Lifetimes:
    """A token that has gone does not come back, so that a number a token and head says all.

    Attributes:
        seen: real tokens of the row before the call.
        before: of each head the positions of the tokens that it held then, ``[n]`` int32, rising.
        last: of each head the last block in which it held a token, ``[n + new tokens]`` int32.
        stops: of each block, the new tokens up to its end.
    """

    seen: int
    before: list[Tensor]
    last: list[Tensor]
    stops: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, row: HeldRow, new: int) -> Lifetimes:
        """Before a row takes so many new tokens."""
        before = [row.store.head(head)["positions"].clone() for head in range(row.store.heads)]
        last = [own.new_zeros(len(own) + new, dtype=torch.int32) for own in before]
        return cls(row.seen, before, last)

    def note(self, row: HeldRow, new: int) -> None:
        """The row is about to take so many tokens more, which are its next block, or its part in this call."""
        start, number = self.stops[-1] if self.stops else 0, len(self.stops)
        for head, (before, last) in enumerate(zip(self.before, self.last, strict=True)):
            held = row.store.head(head)["positions"]
            old = held[: int((held < self.seen).sum())]
            last[torch.searchsorted(before, old)] = number
            last[held[len(old) :].long() + (len(before) - self.seen)] = number
            last[len(before) + start : len(before) + start + new] = number
        self.stops.append(start + new)

    def blocks(self) -> Sequence[tuple[int, int]]:
        """New tokens at which each block begins and ends."""
        return list(zip([0, *self.stops], self.stops, strict=False))

    def held(self, head: int, block: int) -> Tensor:
        """What a head held in a block, the block itself included.

        Returns:
            ``[tokens]`` int64, rising: first those of `before`, by their index, then new ones from ``len(before)`` on.
        """
        known = len(self.before[head]) + self.stops[block]
        return (self.last[head][:known] >= block).nonzero().squeeze(-1)


@dataclass
class Holding:
    """What the heads of a layer held in one call.

    Attributes:
        rows: of each batch row.
        columns: of each row those of its real tokens, ``[n]`` int64; None: all tokens are real.
    """

    rows: list[Lifetimes] = field(default_factory=list)
    columns: list[Tensor] | None = None

    def real(self, tensor: Tensor) -> list[Tensor]:
        """Of each row ``[heads, n, width]``, from ``[rows, heads, tokens, width]``."""
        if self.columns is None:
            return list(tensor)
        return [row.index_select(1, own) for row, own in zip(tensor, self.columns, strict=True)]

    def spread(self, rows: Sequence[Tensor], like: Tensor) -> Tensor:
        """``[rows, heads, tokens, width]`` shaped like another, from what `real` gives; zeros for padding."""
        if self.columns is None:
            return torch.stack(list(rows))
        whole = torch.zeros_like(like)
        for b, (row, own) in enumerate(zip(rows, self.columns, strict=True)):
            whole[b, :, own] = row
        return whole
