from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm.policies.base import BudgetPolicy, Head
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

    def scores(self, head: Head) -> Tensor:
        return head.columns["votes"]
