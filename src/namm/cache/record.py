"""The attention that a policy is shown of one block, of all heads of a batch row side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, groups, replay
from namm.cache.queries import Queries
from namm.cache.storage import TokenStore


@dataclass
class Record:
    """What is written down while a block's watched queries attend.

    Attributes:
        attention: ``[carry + queries, slots]``, the mean over the group, or ``[group, carry + queries, slots]``; zero
            until it is filled, and in free slots.
        normalisers: ``[query heads, n]`` float32, log normalisers of the last queries, which are carried over to the
            next block; None: none are.
        carry: rows of the previous block's last queries.
    """

    attention: Tensor
    normalisers: Tensor | None
    carry: int

    @classmethod
    def empty(cls, store: TokenStore, watched: Tensor, carry: int, per_query_head: bool) -> Record:
        """For the attention that queries ``[query heads, n, width]`` pay to what is stored."""
        heads, queries, _ = watched.shape
        keys = store.columns["keys"]
        shape = (carry + queries, keys.shape[0])
        attention = keys.new_zeros((heads // store.heads, *shape) if per_query_head else shape)
        carried = min(carry, queries)
        normalisers = watched.new_empty(heads, carried, dtype=torch.float32) if carried else None
        return cls(attention, normalisers, carry)

    def of(self, slots: slice, heads: slice) -> tuple[Tensor, Tensor | None]:
        """What the queries of one KV head fill: their attention to its slots, and their normalisers."""
        own = self.attention[..., self.carry :, slots]
        return own, None if self.normalisers is None else self.normalisers[heads]

    def replay(self, queries: Queries, store: TokenStore, form: AttentionForm, updated: int, fresh: int) -> None:
        """Fill the first rows with the attention of the previous block's last queries.

        They are replayed on the keys that are left of those they saw; new keys keep their zeros.

        Args:
            updated: tokens seen when that block ended. fresh: tokens stored since.
        """
        if queries.carried is None or queries.normalisers is None:
            return
        carried, positions = queries.normalisers.shape[1], store.columns["positions"]
        rows = self.attention[..., self.carry - carried : self.carry, :]
        for h, own in enumerate(groups(queries.carried, store.heads)):
            old = slice(store.starts[h], store.starts[h] + store.lengths[h] - fresh)
            asked = queries.carried[own], queries.normalisers[own]
            replay(*asked, store.segment(h, "keys"), form.of_group(own), rows[..., old])
        when = torch.arange(updated - carried, updated, device=positions.device)
        rows.masked_fill_(positions > when[:, None], 0)  # a query pays newer tokens nothing
