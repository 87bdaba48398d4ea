"""Reading for many candidates: once, until the first decision that lets go of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.cache.branch import branch
from namm.memory import NAMM
from namm.policies import NAMMPolicy, Policy
from namm.policies.head import Head
from namm.tasks.answering import Reading


@dataclass
class Undecided(NAMMPolicy):
    """Observes as a memory does, and lets go of nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trims = False

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        return [torch.ones(head.tokens, dtype=torch.bool, device=head.positions.device) for head in heads]


@dataclass(frozen=True, eq=False)
class SharedReading:
    """A context of which the part before the first eviction is read; it can be gone on with any number of times.

    What is observed of a token does not depend on a memory's weights, so the part is the same for all memories of one
    configuration that keep alike. Where a fraction is kept, layers have room for 512 tokens a head more, and contexts
    of more than a thousand tokens are read as a whole before any of them goes.

    Attributes:
        ids: ``[1, tokens]``, the whole context.
        pad: see `Reading`.
        cache: after the shared part.
        logits: ``[1, vocabulary]`` after it.
    """

    model: PreTrainedModel
    ids: Tensor
    pad: int
    cache: MemoryCache
    logits: Tensor

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: PreTrainedModel, context: Tensor, memory: NAMM, kept: float | None, pad: int = 0
    ) -> SharedReading:
        """Read what all memories of one configuration read alike.

        Args:
            context: ``[tokens]``, at least one.
            memory: one of them.
            kept: as of their `NAMMPolicy`.
        """
        ids = context[None].to(model.device)
        shared = NAMMPolicy(memory, kept=kept).untouched(len(context))
        cache = MemoryCache(model, Undecided(memory))
        logits = model(ids[:, :shared], past_key_values=cache, logits_to_keep=1).logits[:, -1]
        return cls(model, ids, pad, cache, logits)

    @torch.inference_mode()
    def under(self, policy: Policy) -> Reading:
        """The whole context, read in one call under a policy and decided on; what is shared stays as it is.

        The policy must be of a memory with the configuration and the fraction of the shared part, or let go of nothing.
        """
        cache = branch(self.model, self.cache, policy)
        rest, logits = self.ids[:, cache.get_seq_length() :], self.logits
        if rest.shape[1]:
            logits = self.model(rest, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        cache.settle()
        return Reading(self.model, cache, self.ids, torch.ones_like(self.ids), self.pad, logits, cache.stats())
