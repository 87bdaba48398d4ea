from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, check_count
from namm.policies.grid import Grid
from namm.policies.head import Head


@dataclass
class L2(BudgetPolicy):
    """The keys of smallest norm (arXiv 2406.11430); layers below `skip_layers` keep everything there, none here.

    Norms of different heads are not made to be compared: with a shared budget, heads of small keys win.

    Attributes:
        skip_layers: the paper leaves its first two layers whole; 0 here, so that a budget means the same for all rules.
    """

    name = "l2"
    skip_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("skip_layers", self.skip_layers, 0)

    def scores(self, head: Head) -> Tensor:
        return -head.keys.float().norm(dim=-1)

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once."""
        return -grid.columns["keys"].float().norm(dim=-1)

    def recent(self, head: Head, count: int) -> int:
        return count if head.layer < self.skip_layers else 0

    def allowed(self, head: Head, seen: int) -> float:
        return float(seen) if head.layer < self.skip_layers else super().allowed(head, seen)
