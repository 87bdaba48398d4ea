from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Received
from namm.policies.grid import Grid
from namm.policies.head import Head
from namm.support.tensors import Column, column_sum


@dataclass
class H2O(BudgetPolicy):
    """Heavy-hitter oracle (arXiv 2306.14048): the tokens with the largest attention received in sum, and recent ones.

    Attributes:
        recent_share: of the budget, for the most recent tokens (half in the paper).
    """

    name = "h2o"
    recent_share: float = 0.5
    queries = None
    state = {"mass": Column()}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent_share <= 1.0:
            raise ValueError(f"recent_share must be 0 to 1, got {self.recent_share!r}")

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        head.columns["mass"] += column_sum(head.attention)

    def scores(self, head: Head) -> Tensor:
        return head.columns["mass"]

    @property
    def received(self) -> Received:
        """What `observe` makes of attention."""
        return Received("mass", adds=True)

    def observe_grid(self, grid: Grid, attention: Tensor | None, end: int) -> None:
        """`observe` of many heads at once."""
        assert attention is not None
        grid.columns["mass"].add_(column_sum(attention.flatten(1)).view(attention.shape[1:]))

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once."""
        return grid.columns["mass"]

    def recent(self, head: Head, count: int) -> int:
        return round(self.recent_share * count)
