from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.policies.base import BudgetPolicy, Received, check_count
from namm.policies.grid import Grid
from namm.policies.head import Head
from namm.support.tensors import Column, column_sum


@dataclass
class SnapKV(BudgetPolicy):
    """SnapKV (arXiv 2404.14469): what the newest `window` queries attend to, pooled over neighbours, and the window.

    The paper compresses once, after the prompt; here it runs at every update like every other rule.

    Attributes:
        window: queries that vote; their own tokens stay.
        pool: width of the max-pooling over neighbouring tokens, odd.
    """

    name = "snapkv"
    window: int = 32
    pool: int = 7
    state = {"votes": Column()}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, 1)
        check_count("pool", self.pool, 1)
        if self.pool % 2 == 0:
            raise ValueError(f"pool must be odd, got {self.pool}")
        self.queries = self.window

    @property
    def received(self) -> Received:
        """What `observe` makes of attention."""
        return Received("votes", pool=self.pool)

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        votes = column_sum(head.attention) / len(head.attention)
        head.columns["votes"].copy_(F.max_pool1d(votes[None], self.pool, stride=1, padding=self.pool // 2)[0])

    def observe_grid(self, grid: Grid, attention: Tensor | None, end: int) -> None:
        """`observe` of many heads at once."""
        assert attention is not None
        votes = (column_sum(attention.flatten(1)) / len(attention)).view(attention.shape[1:])
        pooled = F.max_pool1d(votes, self.pool, stride=1, padding=self.pool // 2)
        grid.columns["votes"].copy_(torch.where(grid.there, pooled, 0.0))

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once."""
        return grid.columns["votes"]

    def scores(self, head: Head) -> Tensor:
        return head.columns["votes"]

    def recent(self, head: Head, count: int) -> int:
        return self.window
