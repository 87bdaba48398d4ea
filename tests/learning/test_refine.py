from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refined import CONFIG, middling, passages

import namm.learning.refine.learn
import namm.learning.refine.lessons
from namm.learning import RefineConfig
from namm.learning.refine.learn import learn, price_of, refine
from namm.learning.refine.lessons import Lesson


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
    total = sum(float(((x.worth / price - 1) / (1 + x.scores.square()))[:-1].sum()) for x in taught)
    assert 1e-7 < price < 2e-6 and abs(total) < 1


def test_what_attention_rests_on_is_not_lowered() -> None:
    taught = [
        replace(lesson, sinks=lesson.features[:, 9] < -0.8, worth=lesson.worth - 1e-4 * (lesson.features[:, 9] < -0.8))
        for lesson in lessons(200)
    ]
    start, features = middling(), lessons(1)[0].features.float()
    learned = learn(start, taught, RefineConfig(steps=200, stride=0.2), 300.0)
    moved = learned.scores(features) - start.scores(features)
    assert float(moved[:2].min()) > -0.5, "at a hundred prices lost, it would have gone far"
    unsafe = [replace(lesson, scores=torch.full((20,), -2.0)) for lesson in taught]
    raised = learn(start, unsafe, RefineConfig(steps=200, stride=0.2), 300.0).scores(features) - start.scores(features)
    assert float(raised[:2].min()) > 1.0, "from two below the threshold to one above it"


@pytest.mark.parametrize("most", [1e-6, -1e-6])
def test_a_price_is_not_found_beyond_the_bound(most: float) -> None:
    """Small gains of most tokens do not outweigh large losses of the others, whatever is cut off at the bound."""
    mixed = [replace(lesson, worth=torch.where(torch.arange(20) % 2 == 0, most, -5e-6)) for lesson in lessons()]
    with pytest.raises(ValueError, match="worth nothing"):
        price_of(mixed, 300.0)


def test_worth_that_is_no_number_is_refused() -> None:
    spoilt = [replace(lesson, worth=lesson.worth * math.nan) for lesson in lessons(2)]
    with pytest.raises(ValueError, match="NaN"):
        price_of(spoilt, 300.0)


def test_a_harmful_memory_has_no_price() -> None:
    harmful = [replace(lesson, worth=-lesson.worth.abs() - 1e-6) for lesson in lessons()]
    with pytest.raises(ValueError, match="worth nothing"):
        price_of(harmful, 300.0)


def test_learning_raises_the_scores_of_what_was_worth_its_place() -> None:
    start = middling()
    learned = learn(start, lessons(200), RefineConfig(steps=200, stride=0.2), 300.0)
    features = torch.stack([lesson.features.float() for lesson in lessons(30)])
    moved = learned.scores(features) - start.scores(features)
    assert float(moved[:, 10:].mean() - moved[:, :10].mean()) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 9, 19])
def test_few_steps_are_learned_too(steps: int) -> None:
    done: list[int] = []
    learn(middling(), lessons(20), RefineConfig(steps=steps), 300.0, lambda step, loss: done.append(step))
    assert done == list(range(1, steps + 1))


SETTINGS = RefineConfig(bounds=(300.0, 100.0), steps=120, batch=3, scored=20, fractions=(0.2, 0.6))


def test_refining_resumes_to_the_same_parameters(reader, characters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(namm.learning.refine.lessons, "SINK", 0.5)  # of 32 tokens each is paid a lot
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
    monkeypatch.setattr(namm.learning.refine.learn, "examine", None)  # nothing is read again
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
    with pytest.raises(ValueError, match="three update intervals"):
        refine(reader, characters, middling(), passages(4, tokens=80), SETTINGS, tmp_path)
    for values in ({"bounds": ()}, {"fractions": (0.5, 0.1)}, {"stride": 0.0}):
        with pytest.raises(ValueError, match="bad settings"):
            RefineConfig(**values)  # type: ignore[arg-type]
