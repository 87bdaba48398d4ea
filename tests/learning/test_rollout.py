from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, middling
from torch import Tensor

from namm import NAMM, MemoryCache
from namm.cache.arithmetic import AttentionForm
from namm.cache.loan import Loan
from namm.cache.padding import Padding
from namm.learning.refine.rollout import RolloutCache, RolloutLayer, RolloutPolicy, frozen, read_thresholds
from namm.policies import Head, NAMMPolicy

MEMORY = NAMM(CONFIG)


class Offsets(RolloutPolicy):
    """One offset for each update, none beyond those given."""

    offsets: tuple[float, ...] = ()

    def score(self, heads: Sequence[Head]) -> list[Tensor]:
        update = heads[0].seen // self.memory.config.update_interval - 1
        return [own + dict(enumerate(self.offsets)).get(update, 0.0) for own in super().score(heads)]


def policy_of(*offsets: float, memory: NAMM = MEMORY) -> RolloutPolicy:
    policy = Offsets(memory, offset=0.0)
    policy.offsets = offsets
    return policy


def attend(policy: RolloutPolicy, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
    """Output ``[query heads, tokens, width]`` of one layer."""
    layer = RolloutLayer(0, policy, Padding(), Loan([], None))
    layer.update(key[None], value[None])
    return layer.attend(query[None], None, form)[0].transpose(0, 1)


FORM = AttentionForm(0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rollout_forgets_exactly_as_the_cache_does(reader, dtype: torch.dtype) -> None:
    """Bit by bit: logits, tokens held, and the scores by which they were chosen."""
    model = copy.deepcopy(reader).to(dtype)
    ids = torch.randint(97, 122, (1, 120), generator=torch.Generator().manual_seed(0))
    offset = _middle_offset(model, ids)
    cache = MemoryCache(model, NAMMPolicy(MEMORY, offset=offset))
    with torch.no_grad():
        expected = model(ids, past_key_values=cache).logits
    policy = RolloutPolicy(MEMORY, offset=offset)
    rollout = RolloutCache(model, policy)
    found = model(ids, past_key_values=rollout).logits
    assert found.requires_grad and 0.05 < policy.kept_fraction() < 0.95
    assert torch.equal(found, expected)
    for layer, held in enumerate(cache.positions()):
        for head, positions in enumerate(held[0]):
            last = [d for d in policy.at(layer) if d.head == head][-1]
            assert torch.equal(last.positions[last.kept], positions[: int(last.kept.sum())].long())


def test_a_rollout_holds_what_is_held_where_all_layers_compete(reader) -> None:
    """The thresholds of a reading, piece by piece, make one call keep the same tokens of every head."""
    ids = torch.randint(97, 122, (1, 128), generator=torch.Generator().manual_seed(0))
    memory = middling()
    cache = MemoryCache(reader, NAMMPolicy(memory, kept=0.3))
    with torch.no_grad():
        for piece in ids.split(CONFIG.update_interval, dim=1):
            reader(piece, past_key_values=cache)
        policy = RolloutPolicy(memory, kept=0.3, thresholds=read_thresholds(reader, memory, ids, 0.3))
        reader(ids, past_key_values=RolloutCache(reader, policy))
    counts = set()
    for layer, held in enumerate(cache.positions()):
        for head, positions in enumerate(held[0]):
            last = [d for d in policy.at(layer) if d.head == head][-1]
            assert torch.equal(last.positions[last.kept], positions.long())
            assert bool(last.kept[last.scores > 0].all())
            counts.add(len(positions))
    assert len(counts) > 1 and policy.kept_fraction() == pytest.approx(0.3, abs=0.01)


def test_scores_are_noted_relative_to_the_threshold(reader) -> None:
    policy = RolloutPolicy(MEMORY, offset=0.02)
    ids = torch.randint(97, 122, (1, 120), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reader(ids, past_key_values=RolloutCache(reader, policy))
    assert policy.decisions
    for one in policy.decisions:
        assert bool(one.kept[one.scores > 0].all()) and bool((one.scores[~one.kept] <= 0).all())


def test_a_budget_needs_its_thresholds() -> None:
    for given in ({"kept": 0.3}, {"offset": 0.0, "thresholds": [0.0]}):
        with pytest.raises(ValueError, match="thresholds"):
            RolloutPolicy(MEMORY, **given)


def _middle_offset(model, ids: Tensor) -> float:
    """At which half of what the first update sees is kept."""
    policy = RolloutPolicy(MEMORY, offset=0.0)
    model(ids, past_key_values=RolloutCache(model, policy))
    return -float(policy.decisions[0].scores.median()) + 1e-4


def test_kept_is_the_fraction_of_what_was_seen_at_the_last_update(reader) -> None:
    ids = torch.randint(97, 122, (1, 120), generator=torch.Generator().manual_seed(0))
    nothing, everything = (RolloutPolicy(MEMORY, offset=offset) for offset in (-1e9, 1e9))
    for policy in (nothing, everything):
        reader(ids, past_key_values=RolloutCache(reader, policy))
    assert nothing.kept_fraction() == pytest.approx(1 / 96) and everything.kept_fraction() == 1


def test_with_everything_kept_gradients_are_those_of_plain_attention(reader) -> None:
    ids = torch.randint(97, 122, (1, 80), generator=torch.Generator().manual_seed(1))
    gradients = []
    for cache in (RolloutCache(reader, RolloutPolicy(middling(), offset=1e6)), None):
        embedded = reader.get_input_embeddings()(ids).detach().requires_grad_()
        with frozen(reader):
            reader(inputs_embeds=embedded, past_key_values=cache).logits.logsumexp(-1).sum().backward()
        gradients.append(embedded.grad)
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-5)


def test_a_rollout_has_the_gradients_of_the_cache(reader) -> None:
    ids, gradients = torch.randint(97, 122, (1, 120), generator=torch.Generator().manual_seed(0)), []
    offset = _middle_offset(reader, ids)
    for cache in (
        RolloutCache(reader, RolloutPolicy(MEMORY, offset=offset)),
        MemoryCache(reader, NAMMPolicy(MEMORY, offset=offset)),
    ):
        embedded = reader.get_input_embeddings()(ids).detach().requires_grad_()
        with frozen(reader):
            reader(inputs_embeds=embedded, past_key_values=cache).logits.logsumexp(-1).sum().backward()
        gradients.append(embedded.grad)
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-5)


@pytest.mark.fault("A5", siblings="an implementation set for good by the rollout; after an error")
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_given_back_as_it_was(reader, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(reader)
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ids, attention = torch.randint(97, 122, (1, 80)), model.config._attn_implementation
    if fails:
        monkeypatch.setattr(NAMMPolicy, "choose", None)

    def run() -> None:
        with frozen(model):
            assert not any(parameter.requires_grad for parameter in model.parameters())
            model(ids, past_key_values=RolloutCache(model, RolloutPolicy(middling(), offset=0.0)))

    if fails:
        with pytest.raises(TypeError):
            run()
    else:
        run()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert model.config._attn_implementation == attention


def test_credit_is_the_change_that_the_other_decision_would_make() -> None:
    """For a loss that is linear in the outputs the credit is exact; two query heads share the keys."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 50, 8, generator=generator, requires_grad=True)
    key, value, weight = (torch.randn(n, 50, 8, generator=generator) for n in (1, 1, 2))
    first = policy_of()
    attend(first, query, key, value, FORM)
    policy = policy_of(-float(first.decisions[0].scores.median()))
    (attend(policy, query, key, value, FORM) * weight).sum().backward()
    (decision,) = policy.decisions
    assert 8 < int(decision.kept.sum()) < 24

    def loss(there: Tensor) -> float:
        logits = 0.3 * query.detach().double()[:, 32:] @ key[0].double().T
        mask = torch.ones(18, 50, dtype=torch.bool).tril(32) & torch.cat([there, torch.ones(18, dtype=torch.bool)])
        output = logits.masked_fill(~mask, -math.inf).softmax(-1) @ value[0].double()
        return float((output * weight[:, 32:]).sum())

    for token in range(31):
        without, present = decision.kept.clone(), decision.kept.clone()
        without[token], present[token] = False, True
        assert decision.credit is not None
        assert float(decision.credit[token]) == pytest.approx(loss(present) - loss(without), abs=1e-5)


def test_what_a_rollout_does_not_know_is_refused(reader) -> None:
    ids = torch.ones(2, 40, dtype=torch.long)
    with pytest.raises(ValueError, match="one document in one call"):
        reader(ids, past_key_values=RolloutCache(reader, RolloutPolicy(middling(), offset=0.0)))
    cache = RolloutCache(reader, RolloutPolicy(middling(), offset=0.0))
    reader(ids[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="one document in one call"):
        reader(ids[:1], past_key_values=cache)
    for form in (AttentionForm(0.3, softcap=20.0), AttentionForm(0.3, sinks=torch.zeros(1))):
        with pytest.raises(ValueError, match="softcap and attention sinks"):
            attend(policy_of(), *(torch.randn(1, 70, 8) for _ in range(3)), form)


def three_decisions() -> tuple[list[Tensor], list[float], list[Tensor]]:
    """Inputs of one head with two query heads, offsets for three blocks and a part, and who was there in each."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(heads, 106, 8, generator=generator, requires_grad=True) for heads in (2, 1, 1)]
    offsets: list[float] = []
    for number in range(3):
        policy = policy_of(*offsets)
        attend(policy, *inputs, FORM)
        offsets.append(-float(policy.decisions[number].scores.median()))
    policy, there = policy_of(*offsets), [torch.ones(106, dtype=torch.bool)]
    attend(policy, *inputs, FORM)
    for decision in policy.decisions:
        kept = torch.ones(106, dtype=torch.bool)
        kept[: 32 * (decision.block + 1)] = False
        kept[decision.positions[decision.scores >= 0]] = True
        kept[32 * (decision.block + 1) - 1] = True
        there.append(kept)
    return inputs, offsets, there


def masked(inputs: list[Tensor], there: list[Tensor]) -> Tensor:
    """Plain attention of every query to what was there in its block, in float64."""
    query, key, value = (tensor.double() for tensor in inputs)
    mask = torch.ones(106, 106, dtype=torch.bool).tril()
    for block, kept in enumerate(there):
        mask[32 * block : 32 * (block + 1)] &= kept
    return (0.3 * query @ key[0].T).masked_fill(~mask, -math.inf).softmax(-1) @ value[0]


def test_gradients_are_those_of_attention_to_what_is_there() -> None:
    inputs, offsets, there = three_decisions()
    weight = torch.randn(2, 106, 8, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((attend(policy_of(*offsets), *inputs, FORM) * weight).sum(), inputs)
    expected = torch.autograd.grad((masked(inputs, there) * weight).sum(), inputs)
    for mine, reference in zip(found, expected, strict=True):
        assert mine == pytest.approx(reference, abs=1e-5)


def test_credit_counts_the_blocks_in_which_a_decision_holds() -> None:
    """A token that stays counts until it goes, one that goes in all later blocks; the last has 10 of 32 queries."""
    inputs, offsets, there = three_decisions()
    weight, policy = torch.randn(2, 106, 8, generator=torch.Generator().manual_seed(4)), policy_of(*offsets)
    (attend(policy, *inputs, FORM) * weight).sum().backward()

    def loss(block: int, token: int, present: bool) -> float:
        changed = [kept.clone() for kept in there]
        changed[block][token] = present
        products = masked(inputs, changed).detach() * weight
        return float(products[:, 32 * block : 32 * (block + 1)].sum())

    first = policy.decisions[0]
    assert first.credit is not None and first.blocks is not None
    stayed = there[1][:31] & there[2][:31] & ~there[3][:31], there[1][:31] & ~there[2][:31], ~there[1][:31]
    for kind, blocks in zip(stayed, ([1, 2], [1], [1, 2, 3]), strict=True):
        assert kind.any(), "the example should have all three fates"
        for token in kind.nonzero().flatten().tolist():
            expected = sum(loss(block, token, True) - loss(block, token, False) for block in blocks)
            assert float(first.credit[token]) == pytest.approx(expected, abs=1e-4)
            assert float(first.blocks[token]) == pytest.approx(sum(10 / 32 if b == 3 else 1 for b in blocks))


def test_heads_are_credited_for_what_they_hold_themselves() -> None:
    """Two KV heads with two query heads each are twice one."""
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(heads, 70, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    both = policy_of(0.3, 0.3)
    attend(both, *inputs, FORM).square().sum().backward()
    for head in range(2):
        own = [tensor.detach()[len(tensor) // 2 * head :][: len(tensor) // 2].requires_grad_() for tensor in inputs]
        alone = policy_of(0.3, 0.3)
        attend(alone, *own, FORM).square().sum().backward()
        mine = [decision for decision in both.decisions if decision.head == head]
        for one, other in zip(mine, alone.decisions, strict=True):
            assert torch.equal(one.positions, other.positions) and torch.equal(one.kept, other.kept)
            assert one.credit == pytest.approx(other.credit, abs=1e-5) and torch.equal(one.blocks, other.blocks)
        assert inputs[1].grad is not None and inputs[1].grad[head] == pytest.approx(own[1].grad[0], abs=1e-5)


def test_a_memory_whose_window_does_not_overlap_carries_nothing() -> None:
    memory = NAMM(replace(CONFIG, window=16, hop=16))
    inputs = [torch.randn(1, 70, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    policy = policy_of(memory=memory)
    assert torch.isfinite(attend(policy, *inputs, FORM)).all() and len(policy.decisions) == 2
