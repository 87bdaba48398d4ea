from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm.policies.base import REHEARSED, BudgetPolicy, check_count
from namm.policies.head import Head
from namm.support.tensors import Column


@dataclass
class KVzip(BudgetPolicy):
    """KVzip (arXiv 2505.23416): the tokens that the model pays most, at its most, when it repeats the text.

    It needs a rehearsal, see `MemoryCache.rehearse`, of blocks of 2,048 tokens as in the paper, and forgets on the way;
    the paper forgets at the end. All heads of all layers share one budget. Tokens that came after the text (a question,
    an answer) were not rehearsed, and go last.

    Attributes:
        sinks: first tokens, which stay.
    """

    name = "kvzip"
    needs_rehearsal = True
    safeguard = 0.0
    update_interval: int | None = 2048
    sinks: int = 4
    across: str = field(default="model", kw_only=True)
    state = {REHEARSED: Column((), torch.float16)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, 0)

    def scores(self, head: Head) -> Tensor:
        rehearsed = head.columns[REHEARSED].float()
        if not rehearsed.any():
            raise ValueError("KVzip decides by a rehearsal, and there was none: read with MemoryCache.rehearse")
        return rehearsed.masked_fill(head.positions < self.sinks, 1.0)

    def recent(self, head: Head, count: int) -> int:
        last = head.columns[REHEARSED].nonzero()
        return head.tokens - 1 - int(last[-1]) if len(last) else 0
