"""The attention that a policy is shown of one block, of all heads and batch rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.padded_attention import replay_padded


@dataclass(frozen=True)
class PaddedRecord:
    """What is written down while the watched queries of some rows attend.

    Attributes:
        attention: ``[carry + queries, rows, heads, slots]``, the mean over the group; zero until it is filled.
        normalisers: ``[rows, query heads, carry]`` float32, log normalisers of the last queries, which are carried over
            to the next block; None: none are.
        last: those queries, ``[rows, query heads, carry, width]``.
        excluded: see `excluding_free`.
    """

    attention: Tensor
    normalisers: Tensor | None
    last: Tensor
    excluded: Tensor

    @classmethod
    def empty(cls, keys: Tensor, watched: Tensor, carry: int, excluded: Tensor) -> PaddedRecord:
        """For what queries ``[rows, query heads, n, width]`` pay to keys ``[rows, heads, slots, width]``."""
        rows, query_heads, queries, _ = watched.shape
        attention = keys.new_zeros(carry + queries, *keys.shape[:3])
        normalisers = watched.new_empty(rows, query_heads, carry, dtype=torch.float32) if carry else None
        return cls(attention, normalisers, watched[:, :, queries - carry :], excluded)

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
        attention, last = self.attention.index_select(1, part), self.last.index_select(0, part)
        excluded = self.excluded.unflatten(0, self.attention.shape[1:3]).index_select(0, part).flatten(0, 1)
        return PaddedRecord(attention, normalisers, last, excluded)

    def replay(
        self,
        carried: tuple[Tensor, Tensor],
        keys: Tensor,
        positions: Tensor,
        form: AttentionForm,
        asked: Sequence[int],
    ) -> None:
        """Fill the first rows with the attention of the last queries of the block before.

        Args:
            carried: `last` and `normalisers` of that block.
            keys: ``[rows, heads, slots, width]``. positions: ``[rows, heads, slots]``.
            asked: of each row, the tokens seen when that block ended.
        """
        earlier = self.attention[: self.carry]
        replay_padded(*carried, keys, form, self.excluded, earlier.flatten(1, 2))
        when = [[updated - back for updated in asked] for back in range(self.carry, 0, -1)]
        newer = positions > torch.tensor(when, device=positions.device)[..., None, None]
        earlier.masked_fill_(newer, 0)  # a query pays newer tokens nothing
