from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head, top
from namm.support.tensors import Column, column_sum


@dataclass
class H2O(BudgetPolicy):
    """Heavy-hitter oracle (arXiv 2306.14048): the tokens with the largest attention received in sum, and recent ones.

    Attributes:
        recent: share of the budget that goes to the most recent tokens (half in the paper).
    """

    name = "h2o"
    recent: float = 0.5
    queries = None
    state = {"mass": Column()}

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        head.columns["mass"] += column_sum(head.attention)

    def keep(self, head: Head) -> Tensor:
        count = self.tokens(head)
        return top(head.columns["mass"], count, recent=max(1, round(self.recent * count)))
