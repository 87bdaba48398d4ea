"""Many memories at once: one forward pass in which every batch row is kept by a member of a population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from namm.policies import NAMMPolicy
from namm.policies.base import Head


@dataclass
class PopulationPolicy(NAMMPolicy):
    """Batch row r is decided by member r of ``memory.flat`` ``[population, parameters]``.

    Attributes:
        failed: members whose network gave NaN.
    """

    name = "population"
    failed: set[int] = field(default_factory=set)

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        """All heads of all members in one batched pass of the network, padded on the old side."""
        memory = self._memory_on(heads[0].positions.device)
        members = memory.flat.shape[0]
        if len(heads) % members or any(head.row != i * members // len(heads) for i, head in enumerate(heads)):
            raise ValueError(f"{len(heads)} heads are not those of {members} members, row by row")
        longest = max(head.tokens for head in heads)
        features = heads[0].summary.new_zeros(len(heads), longest, memory.config.features)
        for head, padded in zip(heads, features, strict=True):
            padded[longest - head.tokens :] = head.summary
        population = replace(memory, flat=memory.flat[:, None])
        scores = population.scores(features.unflatten(0, (members, -1))).flatten(0, 1)
        own = [row[longest - head.tokens :] for row, head in zip(scores, heads, strict=True)]
        broken = torch.stack([row.isnan().any() for row in own])
        self.failed.update(heads[int(i)].row for i in broken.nonzero())
        # the others go on, so one that fails keeps as little as can be
        return [self.decide(head, row.nan_to_num(-torch.inf)) for head, row in zip(heads, own, strict=True)]
