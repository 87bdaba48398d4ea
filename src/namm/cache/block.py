"""One batch row of a layer that forgets: its tokens, and the queries not yet shown to the policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.storage import TokenStore
from namm.support.tensors import SEGMENT, writable


@dataclass
class Row:
    """What one layer holds for one batch row.

    Attributes:
        store: the tokens kept.
        seen: real tokens so far; padding is neither stored nor counted.
        updated: `seen` at the last update.
        queries: ``[query heads, slots, width]``, the newest queries since the last update in the first `pending` slots.
        carried: ``[query heads, carry, width]`` the last queries of the previous block, None before the first update.
        carried_normalisers: their log normalisers, ``[query heads, carry]`` float32.
    """

    store: TokenStore
    queries: Tensor
    seen: int = 0
    updated: int = 0
    pending: int = 0
    carried: Tensor | None = None
    carried_normalisers: Tensor | None = None

    @property
    def fresh(self) -> int:
        """Tokens since the last update."""
        return self.seen - self.updated

    def remember(self, query: Tensor, limit: int | None) -> None:
        """Append queries ``[query heads, n, width]``, keeping the newest `limit`."""
        if self.pending + query.shape[1] > self.queries.shape[1]:
            held = torch.cat([self.queries[:, : self.pending], query], dim=1)
            held = held[:, max(0, held.shape[1] - limit) :] if limit is not None else held
            self.pending = held.shape[1]
            spare = held.new_empty(held.shape[0], SEGMENT, held.shape[2])
            self.queries = torch.cat([held, spare], dim=1)
        else:
            self.queries = writable(self.queries)
            self.queries[:, self.pending : self.pending + query.shape[1]] = query
            self.pending += query.shape[1]

    def recall(self) -> Tensor:
        """The queries held since the last update, which are then given up."""
        held, self.queries, self.pending = self.queries[:, : self.pending], self.queries[:, :0].clone(), 0
        return held

    def clone(self) -> Row:
        def copy(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.clone()

        return Row(
            self.store.clone(),
            self.queries.clone(),
            self.seen,
            self.updated,
            self.pending,
            copy(self.carried),
            copy(self.carried_normalisers),
        )
