from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm.policies.base import BudgetPolicy, check_count
from namm.policies.head import Head
from namm.support.tensors import Column


@dataclass
class ExpectedAttention(BudgetPolicy):
    """Expected Attention (arXiv 2510.00636): what queries to come are expected to pay a token, times its value's norm.

    Queries q, before they are turned by their positions, are taken for normal with the mean m and covariance C of
    those since the last update (the first `sinks` left out). R is the mean rotation of the next `future` positions:

        z_j = exp(R m . k_j + k_j . R C R' k_j / 2),  score_j = (mean over query heads of z_j / sum z + epsilon) |v_j|

    with the scale of the products in q. As in the paper the heads of a layer share a budget.

    Attributes:
        future: positions to come.
        sinks: first tokens, which stay and are left out of the sums.
        epsilon: added to the share, so that unlikely tokens are told apart by their values.
    """

    name = "expected"
    across: str = field(default="layer", kw_only=True)
    future: int = 512
    sinks: int = 4
    epsilon: float = 0.01
    queries = None
    state = {"expected": Column()}
    sees_queries = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("future", self.future, 1)
        check_count("sinks", self.sinks, 0)
        if not 0.0 <= self.epsilon < torch.inf:
            raise ValueError(f"epsilon must be at least 0, got {self.epsilon!r}")

    def observe(self, head: Head) -> None:
        first = head.positions < self.sinks
        mean, covariance = self.expected_queries(head)
        keys = head.keys.float()
        logits = mean @ keys.T + ((keys @ covariance) * keys).sum(-1) / 2
        shares = logits.masked_fill(first, -torch.inf).softmax(-1).nan_to_num().mean(0)
        head.columns["expected"].copy_((shares + self.epsilon) * head.values.float().norm(dim=-1))

    def expected_queries(self, head: Head) -> tuple[Tensor, Tensor]:
        """Mean ``[group, width]`` and covariance ``[group, width, width]`` of the queries to come, float32."""
        assert head.queries is not None and head.rotary is not None
        queries, rotary = head.queries.float(), head.rotary
        asked = torch.arange(head.seen - queries.shape[1], head.seen, device=queries.device)
        queries = rotary.turned_back(queries, asked)
        if bool((late := asked >= self.sinks).any()):
            queries = queries[:, late]
        mean = queries.mean(1)
        spread = queries - mean[:, None]
        covariance = spread.mT @ spread / spread.shape[1]
        ahead = torch.arange(head.seen, head.seen + self.future, device=queries.device)
        half = rotary.turned_on_average(covariance, ahead)
        return rotary.turned_on_average(mean, ahead), rotary.turned_on_average(half.mT, ahead)

    def scores(self, head: Head) -> Tensor:
        return head.columns["expected"].masked_fill(head.positions < self.sinks, torch.inf)
