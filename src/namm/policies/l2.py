from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.policies.base import BudgetPolicy, Head, check_count, top


@dataclass
class L2(BudgetPolicy):
    """The keys of smallest norm (arXiv 2406.11430); layers below `skip_layers` keep everything there, none here.

    Attributes:
        skip_layers: the paper leaves its first two layers whole; 0 here, so that a budget means the same for all rules.
    """

    name = "l2"
    skip_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("skip_layers", self.skip_layers, 0)

    def keep(self, head: Head) -> Tensor:
        if head.layer < self.skip_layers:
            return torch.ones(head.tokens, dtype=torch.bool, device=head.keys.device)
        return top(-head.keys.float().norm(dim=-1), self.tokens(head), recent=1)
