from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, check_count
from namm.policies.grid import Grid
from namm.policies.head import Head


@dataclass
class Streaming(BudgetPolicy):
    """StreamingLLM (arXiv 2309.17453): the first `sinks` tokens and the most recent ones.

    Positions stay true here; the paper re-numbers them inside the cache. No head asks for more than another, so that a
    shared budget changes nothing.
    """

    name = "streaming"
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, 0)

    def scores(self, head: Head) -> Tensor:
        return -head.positions

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once."""
        return -grid.positions.float()

    def recent(self, head: Head, count: int) -> int:
        return count - min(self.sinks, count - 1)
