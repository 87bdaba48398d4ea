from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, EVERY_LAYER, middling
from torch import Tensor

from namm import NAMM, MemoryCache
from namm.distillation.gated import IMPLEMENTATION, GatedAttention, Rollout
from namm.policies import NAMMPolicy


@torch.no_grad()
def test_a_rollout_forgets_as_the_cache_does(reader) -> None:
    ids = torch.randint(97, 122, (1, 120), generator=torch.Generator().manual_seed(0))
    memory = NAMM(replace(CONFIG, calibration=()))
    offset = _middle_offset(reader, memory, ids)
    cache = MemoryCache(reader, NAMMPolicy(memory, offset=offset))
    expected = reader(ids, past_key_values=cache).logits
    reader.set_attn_implementation(IMPLEMENTATION)
    rollout = Rollout(memory, [offset] * 3, EVERY_LAYER)
    found = reader(ids, use_cache=False, rollout=rollout).logits
    assert 0.05 < rollout.kept < 0.95
    assert found == pytest.approx(expected, abs=2e-4)


def _middle_offset(reader, memory: NAMM, ids: Tensor) -> float:
    """At which half of what the first update sees is kept."""
    reader.set_attn_implementation(IMPLEMENTATION)
    rollout = Rollout(memory, [0.0] * 3, EVERY_LAYER)
    reader(ids, use_cache=False, rollout=rollout)
    return -float(rollout.decisions[0].scores.median()) + 1e-4


def test_with_everything_kept_gradients_are_those_of_plain_attention(reader) -> None:
    ids = torch.randint(97, 122, (1, 80), generator=torch.Generator().manual_seed(1))
    gradients = []
    for implementation in (IMPLEMENTATION, "eager"):
        reader.set_attn_implementation(implementation)
        extra = {"rollout": Rollout(middling(), [1e6] * 2, EVERY_LAYER)} if implementation == IMPLEMENTATION else {}
        embedded = reader.get_input_embeddings()(ids).detach().requires_grad_()
        reader(inputs_embeds=embedded, use_cache=False, **extra).logits.logsumexp(-1).sum().backward()
        gradients.append(embedded.grad)
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-5)


def test_credit_is_the_change_that_the_other_decision_would_make() -> None:
    """For a loss that is linear in the outputs the credit is exact; two query heads share the keys."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 50, 8, generator=generator, requires_grad=True)
    key, value, weight = (torch.randn(n, 50, 8, generator=generator) for n in (1, 1, 2))
    memory = NAMM(replace(CONFIG, calibration=()))
    first = Rollout(memory, [0.0], EVERY_LAYER)
    GatedAttention.apply(query, key, value, 0.3, first)
    rollout = Rollout(memory, [-float(first.decisions[0].scores.median())], EVERY_LAYER)
    (GatedAttention.apply(query, key, value, 0.3, rollout) * weight).sum().backward()
    (decision,) = rollout.decisions
    kept = decision.scores[0] >= 0
    kept[-1] = True
    assert 8 < int(kept.sum()) < 24

    def loss(there: Tensor) -> float:
        logits = 0.3 * query.detach()[:, 32:] @ key[0].T
        mask = torch.ones(18, 50, dtype=torch.bool).tril(32) & torch.cat([there, torch.ones(18, dtype=torch.bool)])
        output = logits.masked_fill(~mask, -math.inf).softmax(-1) @ value[0]
        return float((output * weight[:, 32:]).sum())

    for token in range(31):
        without, present = kept.clone(), kept.clone()
        without[token], present[token] = False, True
        assert decision.credit is not None
        assert float(decision.credit[0, token]) == pytest.approx(loss(present) - loss(without), abs=1e-4)


def test_a_batch_is_refused(reader) -> None:
    reader.set_attn_implementation(IMPLEMENTATION)
    with pytest.raises(ValueError, match="one document"):
        reader(torch.ones(2, 40, dtype=torch.long), use_cache=False, rollout=Rollout(middling(), [0.0], EVERY_LAYER))
