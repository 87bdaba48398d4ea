"""The newest queries of all batch rows with their log normalisers: those since the last update and some before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from namm.support.tensors import steps


class Ring:
    """The query of the token at position p is at the place ``p % capacity``: nothing moves when a block ends.

    Attributes:
        capacity: places.
        carry: queries before the last update that are still asked for.
        queries: ``[segments, capacity, group, width]``.
        normalisers: ``[segments, capacity, group]`` float32, to the base 2; infinite for queries that never were or
            were hidden.
    """

    def __init__(self, query: Tensor, heads: int, carry: int, capacity: int) -> None:
        """For queries like these, ``[rows, query heads, n, width]``."""
        rows, query_heads, _, width = query.shape
        shape = rows * heads, capacity, query_heads // heads
        self.heads, self.carry, self.capacity = heads, carry, capacity
        self.queries = query.new_zeros(*shape, width)
        self.normalisers = torch.full(shape, torch.inf, device=query.device)

    def of(self, row: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Queries ``[query heads, n, width]`` of a row's tokens from one position to another, and their natural log
        normalisers ``[query heads, n]``."""
        own = slice(row * self.heads, (row + 1) * self.heads)
        places = torch.arange(begin, end, device=self.queries.device) % self.capacity
        found = self.queries[own][:, places].transpose(1, 2).flatten(0, 1)
        return found, self.normalisers[own][:, places].transpose(1, 2).flatten(0, 1) * math.log(2)

    def put(self, row: int, begin: int, query: Tensor, normalisers: Tensor) -> None:
        """Hold what `of` gave from a position on."""
        own = slice(row * self.heads, (row + 1) * self.heads)
        places = torch.arange(begin, begin + query.shape[1], device=self.queries.device) % self.capacity
        self.queries[own, places] = query.unflatten(0, (self.heads, -1)).transpose(1, 2)
        self.normalisers[own, places] = normalisers.unflatten(0, (self.heads, -1)).transpose(1, 2) / math.log(2)

    def hide(self, gone: Tensor, seen: Sequence[int], updated: Sequence[int]) -> None:
        """Forget the queries of tokens that are gone, ``[rows, positions]`` bool; `seen` and `updated` as before."""
        rows, device = len(seen), gone.device
        places = torch.zeros(rows, self.capacity, dtype=torch.int64, device=device)
        known = torch.zeros(rows, self.capacity, dtype=torch.bool, device=device)
        for row, (end, begin) in enumerate(zip(seen, updated, strict=True)):
            before = steps(end, device)[max(0, begin - self.carry) : begin]
            fresh = steps(end, device)[begin:]
            fresh = fresh[~gone[row, begin:end]]
            now = begin - int(gone[row, :begin].sum())
            for old, first in ((before, now - len(before)), (fresh, now)):
                into = (torch.arange(first, first + len(old), device=device) + self.capacity) % self.capacity
                places[row, into[-self.capacity :]] = old[-self.capacity :] % self.capacity
                there = ~gone[row, old] & (old >= end - self.capacity)
                known[row, into[-self.capacity :]] = there[-self.capacity :]
        index = places.repeat_interleave(self.heads, 0)[..., None].expand_as(self.normalisers)
        self.queries = self.queries.gather(1, index[..., None].expand_as(self.queries))
        lost = ~known.repeat_interleave(self.heads, 0)[..., None]
        self.normalisers = self.normalisers.gather(1, index).masked_fill_(lost, torch.inf)

    def select(self, order: Tensor) -> None:
        """Have the rows ``[rows]`` int64 in another order."""
        order = order.to(self.queries.device)
        segments = (order[:, None] * self.heads + steps(self.heads, order.device)).flatten()
        self.queries = self.queries.index_select(0, segments)
        self.normalisers = self.normalisers.index_select(0, segments)

    def row_bytes(self) -> int:
        """Bytes that are held for one row."""
        nbytes = self.queries.numel() * self.queries.element_size() + 4 * self.normalisers.numel()
        return nbytes * self.heads // max(1, len(self.queries))
