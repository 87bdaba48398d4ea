from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from namm import NAMM, MemoryCache, NAMMConfig
from namm.distillation import Passage, RefineConfig, refine
from namm.distillation.gated import IMPLEMENTATION, Decision, GatedAttention, Rollout
from namm.distillation.refine import make_exam, verdicts
from namm.policies import NAMMPolicy
from namm.tasks.facts import random_fact

CONFIG = NAMMConfig(
    update_interval=32,
    hidden=8,
    ema=(0.9, 0.99),
    compression="log",
    calibration=((0.2, 32, -0.05), (0.2, 128, -0.05), (0.6, 32, 0.05), (0.6, 128, 0.05)),
)
EVERY_LAYER = frozenset({0, 1})


def middling(offset: float = 0.0) -> NAMM:
    """A memory whose scores lie about 0 for a model with random weights."""
    memory = NAMM(CONFIG)
    memory.flat[-1] += offset
    return memory


def passages(count: int = 3, tokens: int = 96) -> list[Passage]:
    rng = random.Random(0)
    found = []
    for number in range(count):
        facts = [random_fact(rng) for _ in range(2)]
        text = (" ".join(fact.statement for fact in facts) + " the cat sat. " * 20)[:tokens]
        found.append(Passage(str(number), torch.tensor([list(text.encode())]), facts))
    return found


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


def test_verdicts_balance_and_padding_and_the_newest_have_none() -> None:
    tokens = torch.tensor([[0, 1, 2, 3], [-1, 1, 2, 3]])
    scores = torch.tensor([[0.1, -0.2, 0.3, 5.0], [9.0, 0.0, -0.1, 0.2]])
    credit = torch.tensor([[-1.0, -0.5, 0.0, 7.0], [3.0, -0.2, 0.1, 7.0]])
    (gradient,), price = verdicts([Decision(0, torch.zeros(0), scores, tokens, credit)], width=0.5)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-4) and 0.1 < price < 1
    assert not gradient[:, -1].any() and gradient[1, 0] == 0
    assert gradient[0, 0] < 0 < gradient[0, 2]  # descent raises the score of what is needed


def test_an_exam_marks_answers_and_quotation(characters) -> None:
    (passage,) = passages(1)
    exam = make_exam(passage, characters, random.Random(0))
    recalled = bytes(exam.ids[0, exam.recalled].tolist()).decode()
    assert exam.passage == 96 and min(exam.recalled) > 96
    assert all(fact.answer in recalled for fact in passage.facts)
    assert torch.equal(exam.ids[:, :96], passage.ids)


SETTINGS = RefineConfig(steps=14, scored=20, fractions=(0.2, 0.6))


def test_refining_resumes_to_the_same_parameters(reader, characters, tmp_path: Path, monkeypatch) -> None:
    start = middling()
    whole = refine(reader, characters, start, passages(), SETTINGS)
    assert not torch.equal(whole.flat, start.flat)
    checkpoint = tmp_path / "refine.ckpt"

    class Stop(Exception):
        pass

    def stop(step: int, found: object) -> None:
        if step == 12:
            raise Stop

    with pytest.raises(Stop):
        refine(reader, characters, start, passages(), SETTINGS, checkpoint=checkpoint, progress=stop)
    steps: list[int] = []
    again = refine(
        reader, characters, start, passages(), SETTINGS, checkpoint=checkpoint, progress=lambda n, _: steps.append(n)
    )
    assert steps == [11, 12, 13, 14] and torch.equal(again.flat, whole.flat)


def test_a_batch_is_refused(reader) -> None:
    reader.set_attn_implementation(IMPLEMENTATION)
    with pytest.raises(ValueError, match="one document"):
        reader(torch.ones(2, 40, dtype=torch.long), use_cache=False, rollout=Rollout(middling(), [0.0], EVERY_LAYER))
