from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import namm.distillation.refining
from namm import NAMM, MemoryCache, NAMMConfig
from namm.distillation import Passage, RefineConfig, refine
from namm.distillation.gated import IMPLEMENTATION, GatedAttention, Rollout
from namm.distillation.refining import Lesson, attention_received, learn, make_exam, price_of
from namm.policies import NAMMPolicy
from namm.spectrogram import update_spectrogram
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


def lessons(count: int = 40) -> list[Lesson]:
    """Of heads in which the newer half of the tokens is worth its place, which the features tell."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        features = torch.randn(20, CONFIG.features, generator=generator)
        features[:, 9] = torch.linspace(-1, 1, 20)
        worth = 1e-6 * (features[:, 9] > 0) + 3e-6 * torch.randn(20, generator=generator)
        found.append(Lesson(features.half(), torch.randn(20, generator=generator), worth, torch.zeros(20).bool()))
    return found


def test_the_price_balances_what_is_near_the_threshold() -> None:
    taught = lessons()
    price = price_of(taught, 1e3)
    total = sum(float(((x.worth / price - 1) / (1 + x.scores.square())).sum()) for x in taught)
    assert 1e-7 < price < 2e-6 and abs(total) < 1


def test_what_attention_rests_on_keeps_its_score() -> None:
    taught = [
        replace(lesson, sinks=lesson.features[:, 9] < -0.8, worth=lesson.worth - 1e-4 * (lesson.features[:, 9] < -0.8))
        for lesson in lessons(200)
    ]
    start, features = middling(), lessons(1)[0].features.float()
    learned = learn(start, taught, RefineConfig(steps=200, stride=0.2), 300.0)
    moved = learned.scores(features) - start.scores(features)
    assert float(moved[:2].abs().max()) < 0.5, "at a hundred prices lost, it would have gone far"


def test_attention_is_read_off_the_features() -> None:
    memory = NAMM(replace(CONFIG, normalised=True), mean=torch.full((34,), -2.0), variance=torch.full((34,), 4.0))
    signal = torch.full((32 + CONFIG.spectrogram.carry, 5), 0.03)
    spectrogram = torch.zeros(5, 2, 17)
    for _ in range(40):
        spectrogram = update_spectrogram(spectrogram, signal, CONFIG.spectrogram)
    features = memory.features(spectrogram, torch.arange(4, -1, -1))
    assert attention_received(memory, features) == pytest.approx(torch.full((5,), 0.03), rel=1e-3)


def test_a_harmful_memory_has_no_price() -> None:
    harmful = [replace(lesson, worth=-lesson.worth.abs() - 1e-6) for lesson in lessons()]
    with pytest.raises(ValueError, match="worth nothing"):
        price_of(harmful, 300.0)


def test_learning_raises_the_scores_of_what_was_worth_its_place() -> None:
    start = middling()
    learned = learn(start, lessons(200), RefineConfig(steps=200, stride=0.2), 300.0)
    features = lessons(1)[0].features.float()
    moved = learned.scores(features) - start.scores(features)
    assert float(moved[10:].mean() - moved[:10].mean()) > 0.1


def test_an_exam_marks_answers_and_quotation(characters) -> None:
    (passage,) = passages(1)
    exam = make_exam(passage, characters, random.Random(0))
    recalled = bytes(exam.ids[0, exam.recalled].tolist()).decode()
    assert exam.passage == 96 and min(exam.recalled) > 96
    assert all(fact.answer in recalled for fact in passage.facts)
    assert torch.equal(exam.ids[:, :96], passage.ids)


SETTINGS = RefineConfig(bounds=(300.0, 100.0), steps=120, batch=3, scored=20, fractions=(0.2, 0.6))


def test_refining_resumes_to_the_same_parameters(reader, characters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(namm.distillation.refining, "SINK", 0.5)  # of 32 tokens each is paid a lot
    start = middling(-6.0)
    whole = refine(reader, characters, start, passages(4), SETTINGS, tmp_path / "a")
    assert not torch.equal(whole.flat, start.flat)

    class Stop(Exception):
        pass

    def stop(turn: int, step: int, loss: float) -> None:
        if (turn, step) == (1, 110):
            raise Stop

    with pytest.raises(Stop):
        refine(reader, characters, start, passages(4), SETTINGS, tmp_path / "b", learning=stop)
    steps: list[tuple[int, int]] = []
    again = refine(
        reader,
        characters,
        start,
        passages(4),
        SETTINGS,
        tmp_path / "b",
        learning=lambda turn, step, loss: steps.append((turn, step)),
    )
    assert steps == [(1, step) for step in range(101, 121)] and torch.equal(again.flat, whole.flat)


def test_too_few_passages_and_bad_settings_are_refused(reader, characters, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 passages are not enough for 2 rounds"):
        refine(reader, characters, middling(), passages(1), SETTINGS, tmp_path)
    for values in ({"bounds": ()}, {"fractions": (0.5, 0.1)}, {"stride": 0.0}):
        with pytest.raises(ValueError, match="bad settings"):
            RefineConfig(**values)  # type: ignore[arg-type]


def test_a_batch_is_refused(reader) -> None:
    reader.set_attn_implementation(IMPLEMENTATION)
    with pytest.raises(ValueError, match="one document"):
        reader(torch.ones(2, 40, dtype=torch.long), use_cache=False, rollout=Rollout(middling(), [0.0], EVERY_LAYER))
