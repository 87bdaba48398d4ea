from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head, top


@dataclass
class TOVA(BudgetPolicy):
    """Token omission via attention (arXiv 2401.06104): the tokens to which the newest query attends most."""

    name = "tova"
    queries = 1

    def observe(self, head: Head) -> Tensor:
        assert head.attention is not None
        return head.attention[-1].float()

    def keep(self, head: Head) -> Tensor:
        return top(head.summary, self.tokens(head), recent=1)
