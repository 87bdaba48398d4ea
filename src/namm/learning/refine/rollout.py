"""A forward pass in which a memory forgets, and a backward pass that says what each of its decisions cost.

Keep-or-drop has no derivative, but what a decision changes can be computed: had token j not been there, the output of a
query that pays it the attention a would differ by ``a / (1 - a) * (o - v_j)`` exactly, and had a dropped token been
there, by a like amount. Multiplied by the gradient of a loss with respect to that output, it is the *credit* of the
decision: the loss with the token less the loss without it, to first order in what follows the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from namm.learning.descent import padded
from namm.memory import NAMM
from namm.memory.spectrogram import update_spectrogram
from namm.support.tensors import mean_of

IMPLEMENTATION = "namm_gated"
MINIMUM_REST = 0.02  # attention left for others: a token with all of the attention has no finite credit


@dataclass
class Decision:
    """What was decided about a layer's tokens at one update; heads are padded on the side of the older tokens.

    Attributes:
        block: number of the block of queries that ended here.
        features: ``[heads, tokens, features]``, what the network saw.
        scores: ``[heads, tokens]``, the offset included; a token stays where it is >= 0.
        tokens: ``[heads, tokens]`` positions; -1: padding.
        credit: ``[heads, tokens]``, set by the backward pass: loss with the token less loss without it, summed over
            the later blocks in which it is there if it stays (or in which it is missed if it goes).
        blocks: ``[heads, tokens]`` float, how many those are; one that was cut short counts for its share.
    """

    block: int
    features: Tensor
    scores: Tensor
    tokens: Tensor
    credit: Tensor | None = None
    blocks: Tensor | None = None


@dataclass
class Rollout:
    """One pass over one document under a memory.

    Attributes:
        memory: decides.
        offsets: added to its scores at each update, in turn.
        layers: the layers that forget; others attend as usual.
        decisions: all that was decided.
    """

    memory: NAMM
    offsets: Sequence[float]
    layers: frozenset[int]
    decisions: list[Decision] = field(default_factory=list)
    _placed: dict[torch.device, NAMM] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> NAMM:
        """The memory on a layer's device; a model may be spread over several."""
        if device not in self._placed:
            self._placed[device] = self.memory.to(device)
        return self._placed[device]

    @property
    def kept(self) -> float:
        """Fraction of all tokens seen that the last update of every layer kept, mean over layers and heads."""
        last = max(decision.block for decision in self.decisions)
        seen = (last + 1) * self.memory.config.update_interval
        final = [decision for decision in self.decisions if decision.block == last]
        kept = [((decision.scores >= 0) & (decision.tokens >= 0)).sum() for decision in final]
        return float(sum(kept)) / (seen * sum(len(decision.tokens) for decision in final))


def gated_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rollout: Rollout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers: causal and without padding in a layer of a rollout, sdpa elsewhere.

    Raises:
        ValueError: for a batch of more than one, or a model whose logits are bounded or shared with sinks.
    """
    if rollout is None or module.layer_idx not in rollout.layers:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if len(query) != 1 or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("a rollout takes one document, and a model without softcap and attention sinks")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = GatedAttention.apply(query[0], key[0], value[0], scaling, rollout)
    return output.transpose(0, 1)[None], None


class GatedAttention(torch.autograd.Function):
    """Attention of one layer to what its memory keeps; the backward pass fills in the credit of its decisions."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, rollout: Rollout) -> Tensor:
        """Args:
        query: ``[query heads, tokens, width]``. key: ``[KV heads, tokens, width]``. value: like the key.

        Returns:
            ``[query heads, tokens, value width]``.
        """
        config = rollout.memory.config
        interval, carry, spectrogram = config.update_interval, config.spectrogram.carry, config.spectrogram
        heads, tokens, group = key.shape[0], key.shape[1], query.shape[0] // key.shape[0]
        kept = torch.ones(heads, tokens, dtype=torch.bool, device=key.device)
        averages = torch.zeros(heads, tokens, len(config.ema), spectrogram.bins, device=key.device)
        tail = torch.zeros(heads, carry, tokens, device=key.device)
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        normalisers = torch.empty(query.shape[:2], device=query.device)
        present, decisions = [], []
        for block, start in enumerate(range(0, tokens, interval)):
            stop = min(start + interval, tokens)
            present.append(kept[:, :stop].clone())
            deciding = stop - start == interval and stop < tokens
            seen = []
            for h in range(heads):
                own = slice(h * group, (h + 1) * group)
                logits = _logits(query[own, start:stop], key[h, :stop], scaling)
                logits.masked_fill_(~kept[h, :stop], -math.inf)
                normalisers[own, start:stop] = logits.logsumexp(-1)
                probabilities = logits.sub_(normalisers[own, start:stop, None]).exp_().to(value.dtype)
                output[own, start:stop] = (probabilities.flatten(0, 1) @ value[h, :stop]).view(group, stop - start, -1)
                if not deciding:
                    continue
                attention = mean_of(probabilities).float()
                there = kept[h, :stop].nonzero().squeeze(-1)
                signal = torch.cat([tail[h, :, :stop], attention]).index_select(1, there)
                averages[h, there] = update_spectrogram(averages[h, there], signal, spectrogram)
                tail[h, :, :stop] = attention[len(attention) - carry :]
                seen.append((there, rollout.on(key.device).features(averages[h, there], there[-1] - there)))
            if deciding:
                decision = _decide(rollout, block, seen)
                for h in range(heads):
                    real = decision.tokens[h] >= 0
                    kept[h, decision.tokens[h][real]] = decision.scores[h][real] >= 0
                kept[:, stop - 1] = True  # the newest stays whatever its score
                decisions.append(decision)
        rollout.decisions += decisions
        ctx.save_for_backward(query, key, value, normalisers)
        ctx.rest = scaling, interval, present, decisions
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, normalisers = ctx.saved_tensors
        scaling, interval, present, decisions = ctx.rest
        heads, group = key.shape[0], query.shape[0] // key.shape[0]
        (incoming,) = gradients
        to_query = torch.empty_like(query)
        to_key, to_value = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
        credits = []
        for block, there in enumerate(present):
            start, stop = block * interval, there.shape[1]
            credit = torch.empty(heads, stop, device=key.device)
            for h in range(heads):
                own = slice(h * group, (h + 1) * group)
                asked = query[own, start:stop]
                logits = _logits(asked, key[h, :stop], scaling)
                dropped = ~there[h]  # their ratio to what is there may exceed 1
                ratio = logits.sub_(normalisers[own, start:stop, None]).clamp_max_(8.0).exp_().flatten(0, 1)
                probabilities = ratio.masked_fill(dropped, 0)
                came = incoming[own, start:stop].flatten(0, 1)
                change = (came @ value[h, :stop].T).float()
                change -= (probabilities * change).sum(-1, keepdim=True)
                rest = torch.where(dropped, 1 + ratio, (1 - ratio).clamp_min_(MINIMUM_REST))
                credit[h] = (ratio.div_(rest).mul_(change)).sum(0)
                to_logits = (probabilities * change).to(query.dtype)
                to_query[own, start:stop] = (to_logits @ key[h, :stop] * scaling).view_as(asked)
                to_key[h, :stop] += (to_logits.T @ asked.flatten(0, 1)).float() * scaling
                to_value[h, :stop] += (probabilities.to(came.dtype).T @ came).float()
            credits.append(credit)
        for decision in decisions:
            decision.credit, decision.blocks = _later(decision, credits, present, interval)
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None


def _logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Causal logits ``[group, queries, tokens]`` float32 of the newest tokens' own queries."""
    group, queries, width = query.shape
    logits = ((query * scaling).reshape(group * queries, width) @ key.T).float().view(group, queries, -1)
    future = torch.ones(queries, queries, dtype=torch.bool, device=query.device).triu(1)
    logits[..., -queries:].masked_fill_(future, -math.inf)
    return logits


def _decide(rollout: Rollout, block: int, seen: Sequence[tuple[Tensor, Tensor]]) -> Decision:
    """Score the heads of a layer at once."""
    features = padded([found for _, found in seen])
    tokens = padded([there + 1 for there, _ in seen]) - 1  # padding is -1
    return Decision(block, features, rollout.on(features.device).scores(features) + rollout.offsets[block], tokens)


def _later(
    decision: Decision, credits: Sequence[Tensor], present: Sequence[Tensor], interval: int
) -> tuple[Tensor, Tensor]:
    """Credit in later blocks, and their number: of a token that stayed, while it was there; of one that went, all."""
    stayed = decision.scores >= 0
    at = decision.tokens.clamp_min(0)
    total, blocks = torch.zeros(2, *decision.scores.shape, device=at.device)
    for block in range(decision.block + 1, len(present)):
        counts = present[block].gather(1, at) == stayed
        total += credits[block].gather(1, at) * counts
        blocks += counts * (present[block].shape[1] / interval - block)
    return total, blocks


AttentionInterface.register(IMPLEMENTATION, gated_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
