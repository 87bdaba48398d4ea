from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Received
from namm.policies.grid import Grid
from namm.policies.head import Head
from namm.support.tensors import Column


@dataclass
class TOVA(BudgetPolicy):
    """Token omission via attention (arXiv 2401.06104): the tokens to which the newest query attends most."""

    name = "tova"
    queries = 1
    state = {"votes": Column()}

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        head.columns["votes"].copy_(head.attention[-1].float())

    @property
    def received(self) -> Received:
        """What `observe` makes of attention."""
        return Received("votes")

    def observe_grid(self, grid: Grid, attention: Tensor | None, end: int) -> None:
        """`observe` of many heads at once."""
        assert attention is not None
        grid.columns["votes"].copy_(attention[-1].float())

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once."""
        return grid.columns["votes"]

    def scores(self, head: Head) -> Tensor:
        return head.columns["votes"]
