"""Tokens of an earlier call, as later ones hold them, with the graph through which gradients reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.engine import HeldRow
from namm.cache.lifetimes import Holding


@dataclass
class Past:
    """Of all batch rows and heads one behind the other, those that were still held when the next call began.

    Attributes:
        keys: ``[tokens, width]``.
        values: ``[tokens, value width]``.
        positions: of each row and head, ``[n]`` int32, rising.
        ends: of each row the tokens seen when its call ended.
    """

    keys: Tensor
    values: Tensor
    positions: list[list[Tensor]]
    ends: list[int]

    @classmethod
    def of_call(cls, keys: Tensor, values: Tensor, holding: Holding, rows: Sequence[HeldRow]) -> Past:
        """Of a call with keys and values ``[rows, KV heads, tokens, width]``, what rows hold of it now."""
        heads, tokens = keys.shape[1:3]
        positions: list[list[Tensor]] = []
        picks, ends = [], []
        for b, (row, lifetimes) in enumerate(zip(rows, holding.rows, strict=True)):
            ends.append(lifetimes.seen + lifetimes.stops[-1])
            positions.append([_between(row, h, lifetimes.seen, ends[-1]) for h in range(heads)])
            for h, own in enumerate(positions[-1]):
                new = own.long() - lifetimes.seen
                column = new if holding.columns is None else holding.columns[b][new]
                picks.append((b * heads + h) * tokens + column)
        where = torch.cat(picks)
        keys, values = (tensor.flatten(0, 2).index_select(0, where) for tensor in (keys, values))
        return cls(keys, values, positions, ends)

    @classmethod
    def constant(cls, rows: Sequence[HeldRow], since: Sequence[int]) -> Past:
        """What rows hold of the tokens from these on, which no gradient reaches."""
        positions: list[list[Tensor]] = []
        columns: dict[str, list[Tensor]] = {"keys": [], "values": []}
        for row, first in zip(rows, since, strict=True):
            positions.append([_between(row, h, first, row.seen) for h in range(row.store.heads)])
            for h, own in enumerate(positions[-1]):
                for name, into in columns.items():
                    held = row.store.head(h)[name]
                    into.append(held[len(held) - len(own) :])
        return cls(torch.cat(columns["keys"]), torch.cat(columns["values"]), positions, [row.seen for row in rows])

    def starts(self, row: int, head: int) -> int:
        """Where the tokens of a head begin."""
        before = [own for owns in self.positions[:row] for own in owns] + self.positions[row][:head]
        return sum(map(len, before))


def places_in(past: Sequence[Past], row: int, head: int, positions: Tensor) -> Tensor:
    """``[n]`` int64: where a head's tokens at these positions are in those of several calls, one behind the other."""
    offset, known, where = 0, [], []
    for each in past:
        own, start = each.positions[row][head], offset + each.starts(row, head)
        known.append(own)
        where.append(torch.arange(start, start + len(own), device=own.device))
        offset += len(each.keys)
    return torch.cat(where)[torch.searchsorted(torch.cat(known), positions)]


def _between(row: HeldRow, head: int, first: int, end: int) -> Tensor:
    """Positions of the tokens that a head holds of these, ``[n]`` int32."""
    held: Tensor = row.store.head(head)["positions"]
    return held[(held >= first) & (held < end)]
