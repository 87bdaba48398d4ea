"""The queries of one batch row that its policy has not been shown yet, and the last ones that it was shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from namm.support.tensors import SEGMENT, writable


@dataclass
class Queries:
    """Queries since the last update, and those carried over from the block before.

    Attributes:
        slots: ``[query heads, slots, width]``, the newest queries since the last update in the first `pending` of them.
        carried: ``[query heads, carry, width]``, the last queries of the previous block, None before the first update.
        normalisers: their log normalisers, ``[query heads, carry]`` float32; infinite for one that was hidden since.
    """

    slots: Tensor
    pending: int = 0
    carried: Tensor | None = None
    normalisers: Tensor | None = None

    def remember(self, query: Tensor, limit: int | None) -> None:
        """Append queries ``[query heads, n, width]``, keeping the newest `limit`."""
        if self.pending + query.shape[1] > self.slots.shape[1]:
            held = torch.cat([self.slots[:, : self.pending], query], dim=1)
            held = held[:, max(0, held.shape[1] - limit) :] if limit is not None else held
            self.pending = held.shape[1]
            spare = min(SEGMENT, self.pending // 4) if query.shape[1] == 1 else 0  # more will come one by one
            self.slots = torch.cat([held, held.new_empty(held.shape[0], spare, held.shape[2])], dim=1)
        else:
            self.slots = writable(self.slots)
            self.slots[:, self.pending : self.pending + query.shape[1]] = query
            self.pending += query.shape[1]

    def recall(self) -> Tensor:
        """The queries held since the last update, which are then given up."""
        held, self.slots, self.pending = self.slots[:, : self.pending], self.slots[:, :0].clone(), 0
        return held

    def carry(self, last: Tensor, normalisers: Tensor) -> None:
        self.carried, self.normalisers = last.clone(), normalisers

    def hide(self, positions: Tensor, seen: int, updated: int) -> None:
        """Forget the queries of some tokens, by position; `seen` and `updated` as they were before."""
        held = torch.arange(seen - self.pending, seen, device=positions.device)
        stay = ~torch.isin(held, positions)
        self.slots, self.pending = self.slots[:, : self.pending][:, stay], int(stay.sum())
        if self.normalisers is not None:
            asked = torch.arange(updated - self.normalisers.shape[1], updated, device=positions.device)
            self.normalisers = self.normalisers.masked_fill(torch.isin(asked, positions), torch.inf)

    def nbytes(self) -> int:
        tensors = (self.slots, self.carried, self.normalisers)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)

    def clone(self) -> Queries:
        def copy(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.clone()

        return replace(self, slots=self.slots.clone(), carried=copy(self.carried), normalisers=copy(self.normalisers))
