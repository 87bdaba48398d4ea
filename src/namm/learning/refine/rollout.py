"""A forward pass in which a memory forgets exactly as in use, and a backward pass that credits its decisions.

Attention, features and decisions are those of `MemoryLayer`; what is added is a policy that writes down what it decides
and the gradient that a `MemoryCache` lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.cache.arithmetic import AttentionForm
from namm.cache.layer import MemoryLayer
from namm.learning.refine.credit import attention_backward, credit_of_decision
from namm.memory import NAMM
from namm.memory.features import observed
from namm.policies import NAMMPolicy
from namm.policies.head import Head
from namm.policies.namm import LEAST, highest_gone
from namm.policies.pool import top


@dataclass
class Decision:
    """What was decided about one head at one update.

    Attributes:
        layer: where.
        head: the same, counting KV heads.
        block: number of the block of queries that ended here.
        observed: ``[tokens, config.observed]``, see `namm.memory.features.observed`.
        scores: ``[tokens]``, less the threshold, see `NAMMPolicy.margins`.
        positions: ``[tokens]`` int64, the tokens that the head held in this block.
        kept: ``[tokens]`` bool.
        credit: ``[tokens]``, set by the backward pass: loss with the token less loss without it, summed over the
            later blocks in which it is there if it stays (or in which it is missed if it goes).
        blocks: ``[tokens]``, how many those are; one that was cut short counts for its share.
    """

    layer: int
    head: int
    block: int
    observed: Tensor
    scores: Tensor
    positions: Tensor
    kept: Tensor
    credit: Tensor | None = None
    blocks: Tensor | None = None


class ReadingPolicy(NAMMPolicy):
    """A memory that writes down the threshold of every update at which all layers were compared.

    Attributes:
        thresholds: of each such update the highest score of a token that had to go, minus infinity where none had.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.thresholds: list[float] = []

    def note(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> None:
        if heads[0].whole:
            gone = highest_gone(scores, keep)
            self.thresholds.append(-math.inf if gone is None else gone)


@torch.no_grad()
def read_thresholds(model: PreTrainedModel, memory: NAMM, ids: Tensor, kept: float) -> list[float]:
    """The threshold after every update interval of a text ``[1, tokens]`` that is read in such pieces."""
    policy = ReadingPolicy(memory, kept=kept)
    cache = MemoryCache(model, policy)
    for piece in ids.split(memory.config.update_interval, dim=1):
        model(piece, past_key_values=cache, logits_to_keep=1)
    return policy.thresholds


@dataclass
class RolloutPolicy(NAMMPolicy):
    """A memory that writes down what it decides.

    A rollout is one call, layer after layer, so that layers can't compete in it. With `kept` it needs the thresholds
    at which they did when the same text was read piece by piece, which make it hold the same tokens.

    Attributes:
        thresholds: see `read_thresholds`; beyond its end the last one goes on.
        decisions: layer by layer, in each from the first update on, at each update head by head.
    """

    thresholds: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.thresholds) == (self.share is None):
            raise ValueError(
                "a rollout needs thresholds where a budget is kept, and none where tokens are judged alone"
            )
        self.trims = False
        self.decisions: list[Decision] = []

    def choose(self, heads: Sequence[Head], scores: Sequence[Tensor]) -> list[Tensor]:
        if not self.thresholds:
            return super().choose(heads, scores)
        floors = [round(LEAST * self._allowed(head, head.seen)) for head in heads]
        above = [int((own > self._threshold(head)).sum()) for head, own in zip(heads, scores, strict=True)]
        return [
            top(own, max(1, floor, count), recent=1) for own, floor, count in zip(scores, floors, above, strict=True)
        ]

    def margins(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> list[Tensor]:
        if not self.thresholds:
            return super().margins(heads, scores, keep)
        return [own - self._threshold(head) for head, own in zip(heads, scores, strict=True)]

    def _threshold(self, head: Head) -> float:
        return self.thresholds[min(self._block(head), len(self.thresholds) - 1)]

    def _block(self, head: Head) -> int:
        return head.seen // self.memory.config.update_interval - 1

    def note(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> None:
        for head, margin, kept in zip(heads, self.margins(heads, scores, keep), keep, strict=True):
            block = self._block(head)
            positions = head.positions.long()  # a copy: the column itself moves on
            found = observed(head.columns, self.memory.config)
            self.decisions.append(Decision(head.layer, head.index, block, found, margin, positions, kept))

    def at(self, layer: int) -> list[Decision]:
        """Decisions of one layer."""
        return [decision for decision in self.decisions if decision.layer == layer]

    def kept_fraction(self) -> float:
        """Fraction of the tokens seen that the last update kept, mean over layers and heads."""
        block = max(decision.block for decision in self.decisions)
        last = [decision for decision in self.decisions if decision.block == block]
        return sum(float(one.kept.sum()) / (1 + int(one.positions[-1])) for one in last) / len(last)


class RolloutLayer(MemoryLayer):
    """A layer through which gradients pass, and whose backward pass fills in the credit of its decisions."""

    policy: RolloutPolicy

    def attend(self, query: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
        """As `MemoryLayer.attend`, for the whole document at once.

        Raises:
            ValueError: for more than one document or call, or a model whose logits are bounded or shared with sinks.
        """
        if len(query) != 1 or self.rows or form.softcap is not None or form.sinks is not None:
            raise ValueError(
                "a rollout takes one document in one call, and a model without softcap and attention sinks"
            )
        assert self._handed is not None
        output: Tensor = _CreditedAttention.apply(query, *self._handed, self, mask, form)
        return output

    def held(self) -> list[Tensor]:
        """For each block ``[KV heads, tokens to its end]`` bool: which tokens the heads held in it."""
        (row,) = self.rows
        heads, interval = row.store.heads, self.policy.memory.config.update_interval
        at_updates = [decision.positions for decision in self.policy.at(self.index)]
        blocks = [at_updates[first : first + heads] for first in range(0, len(at_updates), heads)]
        if row.seen % interval:
            blocks.append([row.store.head(h)["positions"].long() for h in range(heads)])
        held = []
        for number, positions in enumerate(blocks, start=1):
            there = positions[0].new_zeros(heads, min(number * interval, row.seen), dtype=torch.bool)
            for h, own in enumerate(positions):
                there[h, own] = True
            held.append(there)
        return held


class _CreditedAttention(torch.autograd.Function):
    """`MemoryLayer.attend` with a backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        layer: RolloutLayer,
        mask: Tensor | None,
        form: AttentionForm,
    ) -> Tensor:
        output = MemoryLayer.attend(layer, query, mask, form)
        ctx.save_for_backward(query, keys, values)
        ctx.rest = form.scaling, layer.held(), layer.policy.at(layer.index)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, keys, values = (tensor[0] for tensor in ctx.saved_tensors)
        scaling, held, decisions = ctx.rest
        incoming = gradients[0][0].transpose(0, 1)
        found, credits = attention_backward(query, keys, values, incoming, scaling, held)
        for decision in decisions:
            own: list[Sequence[Tensor]] = [[block[decision.head] for block in blocks] for blocks in (credits, held)]
            decision.credit, decision.blocks = credit_of_decision(
                decision.positions, decision.kept, decision.block, *own
            )
        return *(gradient[None] for gradient in found), None, None, None


class RolloutCache(MemoryCache):
    """A `MemoryCache` for one document that gradients pass through."""

    def __init__(self, model: PreTrainedModel, policy: RolloutPolicy) -> None:
        super().__init__(model, policy)
        self.layers = [
            RolloutLayer(layer.index, policy, layer.padding, layer.loan) if isinstance(layer, MemoryLayer) else layer
            for layer in self.layers
        ]
        self._forgetting = [layer for layer in self.layers if isinstance(layer, MemoryLayer)]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within it no parameter of the model wants a gradient; afterwards each does as before, whatever happened."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
