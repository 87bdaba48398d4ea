from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.policies.base import BudgetPolicy, check_count
from namm.policies.head import Head


@dataclass
class Random(BudgetPolicy):
    """Tokens by lot, deterministic for a seed: the floor that every rule must beat."""

    name = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seed", self.seed, 0)

    def scores(self, head: Head) -> Tensor:
        # not the row: a batch must equal single runs
        key = hash((self.seed, head.layer, head.index, head.seen)) % 2**63
        generator = torch.Generator().manual_seed(key)
        return torch.rand(head.tokens, generator=generator).to(head.keys.device)
