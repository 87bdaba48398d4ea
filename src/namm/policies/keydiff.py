from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from namm.policies.base import BudgetPolicy
from namm.policies.head import Head


@dataclass
class KeyDiff(BudgetPolicy):
    """KeyDiff (arXiv 2504.15364): the keys that are least like the others.

    The score of a key k is ``-cos(k, a)``, where the anchor a is the mean of the head's keys, each of length 1.
    """

    name = "keydiff"

    def scores(self, head: Head) -> Tensor:
        keys = F.normalize(head.keys.float(), dim=-1)
        return -F.cosine_similarity(keys, keys.mean(0, keepdim=True), dim=-1)
