"""The attention that a policy is shown of one block, of all heads and batch rows side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.grid import FREE
from namm.cache.padded_attention import replay_padded


@dataclass(frozen=True)
class PaddedRecord:
    """What is written down while the watched queries of some rows attend.

    Attributes:
        attention: ``[carry + queries, rows, heads, slots]``, the mean over the group; zero until it is filled.
        normalisers: ``[rows, query heads, carry]`` float32, log normalisers of the last queries, which are carried over
            to the next block; None: none are.
        last: those queries, ``[rows, query heads, carry, width]``.
    """

    attention: Tensor
    normalisers: Tensor | None
    last: Tensor

    @classmethod
    def empty(cls, keys: Tensor, watched: Tensor, carry: int) -> PaddedRecord:
        """For what queries ``[rows, query heads, n, width]`` pay to keys ``[rows, heads, slots, width]``."""
        rows, query_heads, queries, _ = watched.shape
        attention = keys.new_zeros(carry + queries, *keys.shape[:3])
        normalisers = watched.new_empty(rows, query_heads, carry, dtype=torch.float32) if carry else None
        return cls(attention, normalisers, watched[:, :, queries - carry :])

    @property
    def into(self) -> tuple[Tensor, Tensor | None]:
        """What the queries fill: their attention ``[n, rows * heads, slots]``, and their normalisers."""
        return self.attention[self.carry :].flatten(1, 2), self.normalisers

    @property
    def carry(self) -> int:
        return self.last.shape[2]

    def of(self, part: Tensor | None) -> PaddedRecord:
        """Of some rows, by number; None: all."""
        if part is None:
            return self
        normalisers = None if self.normalisers is None else self.normalisers.index_select(0, part)
        return PaddedRecord(self.attention.index_select(1, part), normalisers, self.last.index_select(0, part))

    def replay(
        self, carried: Tensor, normalisers: Tensor, keys: Tensor, positions: Tensor, form: AttentionForm, asked: Tensor
    ) -> None:
        """Fill the first rows with the attention of the last queries of the block before.

        Args:
            carried, normalisers: as `last` and `normalisers` of that block.
            keys: ``[rows, heads, slots, width]``. positions: ``[rows, heads, slots]``.
            asked: ``[rows]``, tokens seen when that block ended.
        """
        earlier = self.attention[: self.carry]
        replay_padded(carried, normalisers, keys, form, earlier.flatten(1, 2))
        when = asked + torch.arange(-self.carry, 0, device=asked.device)[:, None]  # [carry, rows]
        # a query pays newer tokens nothing
        earlier.masked_fill_((positions > when[..., None, None]) | (positions == FREE), 0)
