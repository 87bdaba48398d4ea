from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, EVERY_LAYER, middling
from torch import Tensor

from namm import NAMM, MemoryCache
from namm.learning.refine.rollout import IMPLEMENTATION, GatedAttention, Rollout
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


def three_decisions() -> tuple[list[Tensor], Rollout, list[Tensor]]:
    """Inputs of one head with two query heads, a rollout over three blocks and a part, and who was there in each."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(heads, 106, 8, generator=generator, requires_grad=True) for heads in (2, 1, 1)]
    memory = NAMM(replace(CONFIG, calibration=()))
    offsets: list[float] = []
    for _ in range(3):
        rollout = Rollout(memory, [*offsets, 0.0, 0.0, 0.0][:3], EVERY_LAYER)
        GatedAttention.apply(*inputs, 0.3, rollout)
        offsets.append(-float(rollout.decisions[len(offsets)].scores.median()))
    rollout = Rollout(memory, offsets, EVERY_LAYER)
    there = [torch.ones(106, dtype=torch.bool)]
    GatedAttention.apply(*inputs, 0.3, rollout)
    for decision in rollout.decisions:
        kept = torch.ones(106, dtype=torch.bool)
        kept[: 32 * (decision.block + 1)] = False
        kept[decision.tokens[0][decision.scores[0] >= 0]] = True
        kept[32 * (decision.block + 1) - 1] = True
        there.append(kept)
    rollout.decisions.clear()
    return inputs, rollout, there


def masked(inputs: list[Tensor], there: list[Tensor]) -> Tensor:
    """Plain attention of every query to what was there in its block."""
    query, key, value = inputs
    mask = torch.ones(106, 106, dtype=torch.bool).tril()
    for block, kept in enumerate(there):
        mask[32 * block : 32 * (block + 1)] &= kept
    return (0.3 * query @ key[0].T).masked_fill(~mask, -math.inf).softmax(-1) @ value[0]


def test_gradients_are_those_of_attention_to_what_is_there() -> None:
    inputs, rollout, there = three_decisions()
    weight = torch.randn(2, 106, 8, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((GatedAttention.apply(*inputs, 0.3, rollout) * weight).sum(), inputs)
    expected = torch.autograd.grad((masked(inputs, there) * weight).sum(), inputs)
    for mine, reference in zip(found, expected, strict=True):
        assert mine == pytest.approx(reference, abs=1e-4)


def test_credit_counts_the_blocks_in_which_a_decision_holds() -> None:
    """A token that stays counts until it goes, one that goes in all later blocks; the last has 10 of 32 queries."""
    inputs, rollout, there = three_decisions()
    weight = torch.randn(2, 106, 8, generator=torch.Generator().manual_seed(4))
    (GatedAttention.apply(*inputs, 0.3, rollout) * weight).sum().backward()

    def loss(block: int, token: int, present: bool) -> float:
        changed = [kept.clone() for kept in there]
        changed[block][token] = present
        products = masked(inputs, changed).detach() * weight
        return float(products[:, 32 * block : 32 * (block + 1)].sum())

    first = rollout.decisions[0]
    assert first.credit is not None and first.blocks is not None
    stayed = there[1][:31] & there[2][:31] & ~there[3][:31], there[1][:31] & ~there[2][:31], ~there[1][:31]
    for kind, blocks in zip(stayed, ([1, 2], [1], [1, 2, 3]), strict=True):
        assert kind.any(), "the example should have all three fates"
        for token in kind.nonzero().flatten().tolist():
            expected = sum(loss(block, token, True) - loss(block, token, False) for block in blocks)
            assert float(first.credit[0, token]) == pytest.approx(expected, abs=2e-4)
            assert float(first.blocks[0, token]) == pytest.approx(sum(10 / 32 if b == 3 else 1 for b in blocks))


def test_a_memory_whose_window_does_not_overlap_carries_nothing() -> None:
    memory = NAMM(replace(CONFIG, calibration=(), window=16, hop=16))
    inputs = [torch.randn(1, 70, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    rollout = Rollout(memory, [0.0, 0.0], EVERY_LAYER)
    assert torch.isfinite(GatedAttention.apply(*inputs, 0.3, rollout)).all() and len(rollout.decisions) == 2
