"""The queries of all batch rows that their policy has not been shown yet, and the last ones that it was shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.engine import RowState
from namm.cache.queries import Queries
from namm.support.tensors import steps


class Pending:
    """Queries since the last update of each row, the newest last, and those carried over from the block before.

    Attributes:
        held: of all rows, one row's query heads behind the other's; before a row's own there may be any.
        carried: ``[rows, query heads, carry, width]``, the last queries of the previous block; None before the first.
        normalisers: their log normalisers, ``[rows, query heads, carry]`` float32; infinite for one that was hidden
            since, or never was.
    """

    def __init__(self, held: Queries, rows: int) -> None:
        self.held, self.rows = held, rows
        self.carried: Tensor | None = None
        self.normalisers: Tensor | None = None

    @classmethod
    def empty(cls, query: Tensor) -> Pending:
        """For queries like these, ``[rows, query heads, n, width]``."""
        return cls(Queries(query.new_empty(query.shape[0] * query.shape[1], 0, query.shape[3])), query.shape[0])

    @classmethod
    def of(cls, states: Sequence[RowState]) -> Pending:
        """Of rows that were held elsewhere."""
        most = max(state.pending.shape[1] for state in states)
        slots = torch.cat([F.pad(state.pending, (0, 0, most - state.pending.shape[1], 0)) for state in states])
        made = cls(Queries(slots, most), len(states))
        for row, state in enumerate(states):
            if state.carried is not None and state.normalisers is not None:
                made.carry(state.carried[None], state.normalisers[None], torch.tensor([row], device=slots.device))
        return made

    def remember(self, query: Tensor, new: Sequence[int], limit: int) -> None:
        """Append queries ``[rows, query heads, n, width]``, of which each row's last `new` are some; `limit` stay."""
        tokens, held = query.shape[2], self.held
        if all(count == tokens for count in new):
            held.remember(query.flatten(0, 1), limit)
            return
        # close the gaps before the new ones
        held.slots = torch.cat([held.slots[:, : held.pending], query.flatten(0, 1)], dim=1)
        both = held.pending + tokens
        columns = steps(both, query.device)[max(0, both - limit) :]
        counts = torch.tensor(new, device=query.device)[:, None]
        gaps = torch.where(columns < both - counts, tokens - counts, 0)
        held.pending = both
        self._gather((columns - gaps).clamp_min_(0))

    def newest(self, count: int) -> Tensor:
        """``[rows, query heads, count, width]``."""
        held = self.held
        return held.slots[:, held.pending - count : held.pending].unflatten(0, (self.rows, -1))

    def clear(self) -> None:
        """Give up what is held."""
        if self.held.pending:
            self.held.recall()

    def carry(self, last: Tensor, normalisers: Tensor, part: Tensor | None) -> None:
        """Carry over the last queries ``[some rows, query heads, carry, width]`` of some rows (None: all)."""
        if part is None:
            self.carried, self.normalisers = last.clone(), normalisers
            return
        if self.carried is None or self.normalisers is None:
            self.carried = last.new_zeros(self.rows, *last.shape[1:])
            self.normalisers = normalisers.new_full((self.rows, *normalisers.shape[1:]), torch.inf)
        self.carried = self.carried.index_copy(0, part, last)
        self.normalisers = self.normalisers.index_copy(0, part, normalisers)

    def hide(self, gone: Tensor, seen: Sequence[int], updated: Sequence[int]) -> None:
        """Forget the queries of tokens that are gone, ``[rows, positions]`` bool; `seen` and `updated` as before."""
        device, pending = gone.device, self.held.pending
        if pending:
            asked = torch.tensor(seen, device=device)[:, None] - pending + steps(pending, device)
            stays = ~gone.gather(1, asked.clamp_min(0)) & (asked >= torch.tensor(updated, device=device)[:, None])
            self._gather(stays.to(torch.int8).argsort(dim=1, stable=True))
        if self.normalisers is not None:
            carry = self.normalisers.shape[2]
            asked = torch.tensor(updated, device=device)[:, None] - carry + steps(carry, device)
            self.normalisers = self.normalisers.masked_fill(gone.gather(1, asked.clamp_min(0))[:, None], torch.inf)

    def select(self, order: Tensor) -> None:
        """Have the rows ``[rows]`` int64 in another order."""
        order = order.to(self.held.slots.device)
        self.held.slots = self.held.slots.unflatten(0, (self.rows, -1)).index_select(0, order).flatten(0, 1)
        if self.carried is not None and self.normalisers is not None:
            self.carried, self.normalisers = (each.index_select(0, order) for each in (self.carried, self.normalisers))
        self.rows = len(order)

    def row_bytes(self) -> int:
        """Bytes that are held for one row."""
        tensors = (self.held.slots, self.carried, self.normalisers)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None) // self.rows

    def _gather(self, source: Tensor) -> None:
        """Have the queries from these places ``[rows, n]``, and no others."""
        held = self.held.slots[:, : self.held.pending].unflatten(0, (self.rows, -1))
        index = source[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
        self.held.slots, self.held.pending = held.gather(2, index).flatten(0, 1), source.shape[1]
