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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent must be a share of the budget, 0 to 1, got {self.recent!r}")

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        head.columns["mass"] += column_sum(head.attention)

    def keep(self, head: Head) -> Tensor:
        count = self.tokens(head)
        return top(head.columns["mass"], count, recent=max(1, round(self.recent * count)))
