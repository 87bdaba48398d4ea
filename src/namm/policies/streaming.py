from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head, check_count, top


@dataclass
class Streaming(BudgetPolicy):
    """StreamingLLM (arXiv 2309.17453): the first `sinks` tokens and the most recent ones.

    Positions stay true here; the paper re-numbers them inside the cache.
    """

    name = "streaming"
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, 0)

    def keep(self, head: Head) -> Tensor:
        count = self.tokens(head)
        return top(-head.positions, count, recent=count - min(self.sinks, count - 1))
