from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head, check_count


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

    def recent(self, head: Head, count: int) -> int:
        return count - min(self.sinks, count - 1)
