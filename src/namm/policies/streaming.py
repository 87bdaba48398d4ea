from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head


@dataclass
class Streaming(BudgetPolicy):
    """StreamingLLM (arXiv 2309.17453): the first `sinks` tokens and the most recent ones.

    Positions stay true here; the paper re-numbers them inside the cache.
    """

    name = "streaming"
    sinks: int = 4

    def keep(self, head: Head) -> Tensor:
        recent = max(1, self.tokens(head) - self.sinks)
        keep = head.positions >= head.positions[-recent]
        return keep | (head.positions < min(self.sinks, self.tokens(head) - 1))
