"""Many memories at once: one forward pass in which every batch row is kept by a member of a population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
import torch.nn.functional as F
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

    def score(self, heads: Sequence[Head]) -> list[Tensor]:
        """Layer by layer."""
        return [own for _, layer in groupby(heads, lambda head: head.layer) for own in self._score_layer(list(layer))]

    def _score_layer(self, heads: Sequence[Head]) -> list[Tensor]:
        """All heads of all members in one batched pass of the network, padded on the old side."""
        memory = self._memory_on(heads[0].positions.device)
        members = memory.flat.shape[0]
        if len(heads) % members or any(head.row != i * members // len(heads) for i, head in enumerate(heads)):
            raise ValueError(f"{len(heads)} heads are not those of {members} members, row by row")
        decided = [head.tokens - head.undecided for head in heads]
        features = memory.flat.new_zeros(len(heads), max(decided), memory.config.features)
        for head, tokens, padded in zip(heads, decided, features, strict=True):
            if tokens:
                padded[max(decided) - tokens :] = self.features(head.first(tokens))
        population = replace(memory, flat=memory.flat[:, None])
        found = population.scores(features.unflatten(0, (members, -1))).flatten(0, 1)
        own = [row[max(decided) - tokens :] for row, tokens in zip(found, decided, strict=True)]
        broken = torch.stack([row.isnan().any() for row in own])
        self.failed.update(heads[int(i)].row for i in broken.nonzero())
        # the others go on, so for one that fails no token is worth anything
        return [F.pad(row.nan_to_num(-torch.inf), (0, head.undecided)) for row, head in zip(own, heads, strict=True)]
