from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import namm.evolution.fitness
from evolution.runs import SETTINGS
from namm import NAMM, NAMMConfig
from namm.evolution.fitness import Result, Score, Work, excess, fitness, relative, score
from namm.evolution.objective import HIGHEST, LOWEST, STEEP
from namm.policies import NAMMPolicy
from namm.tasks import Sample
from namm.tasks.answering import Reading

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9, 0.99), compression="log")
SAMPLE = Sample("the cat sat on the mat and looked at the moon; " * 3, "\nthe cat sat on", " the mat")


@pytest.fixture
def memory() -> NAMM:
    return NAMM(CONFIG)


@pytest.fixture
def flats(memory: NAMM) -> torch.Tensor:
    moved = memory.flat + 0.5 * torch.randn(5, len(memory.flat), generator=torch.Generator().manual_seed(0))
    moved[:, -1] += torch.linspace(-3, 3, 5)
    return moved


def work(flats: torch.Tensor, metric: str = "likelihood") -> Work:
    return Work("key", "reader", SAMPLE, metric, flats)


def test_keeping_everything_is_as_good_as_the_full_cache(reader, characters, memory, flats) -> None:
    flats[0, -1] = 1e6
    for metric, best in (("likelihood", 1.0), ("nats", 0.0)):
        scores = score(reader, characters, memory, work(flats, metric))
        assert scores[0].value == pytest.approx(best, abs=1e-4) and scores[0].kept == 1.0
        assert all(s.kept < 1 for s in scores[1:3])


def test_nats_are_the_logarithm_of_the_likelihood(reader, characters, memory, flats) -> None:
    nats, likelihood = (score(reader, characters, memory, work(flats, name)) for name in ("nats", "likelihood"))
    assert [math.exp(one.value) for one in nats] == pytest.approx([one.value for one in likelihood], rel=1e-5)


def test_one_sample_counts_for_only_so_much() -> None:
    assert [relative(value, -1.0, "nats") for value in (-9.0, -1.5, 3.0)] == [LOWEST, -0.5, HIGHEST]
    assert math.isnan(relative(math.nan, -1.0, "nats"))
    assert relative(-2.0, -1.0, "likelihood") == math.exp(-1.0)
    assert relative(0.25, 0.5, "f1") == 0.5


def test_a_candidate_that_breaks_is_the_only_one_that_fails(reader, characters, memory, flats) -> None:
    sound = score(reader, characters, memory, work(flats))
    broken = flats.clone()
    broken[2] = math.nan
    broken[3] *= 1e30  # finite, but the network's values are not
    scores = score(reader, characters, memory, work(broken))
    assert [math.isfinite(s.value) for s in scores] == [True, True, False, False, True]
    assert "NaN" in scores[2].error and "NaN" in scores[3].error
    assert [scores[i] for i in (0, 1, 4)] == [sound[i] for i in (0, 1, 4)]


def test_a_candidate_without_enough_memory_changes_nothing_for_the_others(
    reader, characters, memory, flats, monkeypatch
) -> None:
    wanted = score(reader, characters, memory, work(flats))

    class Greedy(NAMMPolicy):
        def score(self, heads):
            if torch.equal(self.memory.flat, flats[1]):
                raise torch.OutOfMemoryError("out of memory")
            return super().score(heads)

    monkeypatch.setattr(namm.evolution.fitness, "NAMMPolicy", Greedy)
    found = score(reader, characters, memory, work(flats))
    assert found[1] == Score(-math.inf, 1.0, "out of memory")
    assert found[:1] + found[2:] == wanted[:1] + wanted[2:]


def test_an_error_of_ours_is_not_swallowed(reader, characters, memory, flats, monkeypatch) -> None:
    class Wrong(NAMMPolicy):
        def score(self, heads):
            raise RuntimeError("shapes do not match")

    monkeypatch.setattr(namm.evolution.fitness, "NAMMPolicy", Wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        score(reader, characters, memory, work(flats))


def test_a_sample_that_the_full_cache_cannot_answer_compares_nothing(reader, characters, memory, flats) -> None:
    assert score(reader, characters, memory, work(flats, "exact")) is None


@pytest.mark.fault("A10", siblings="answers are no longer cut where their reference ends")
def test_an_answer_that_goes_on_is_another(reader, characters, memory, flats, monkeypatch) -> None:
    said = torch.tensor([list(b" the mats")])
    monkeypatch.setattr(Reading, "generate", lambda self, questions, tokens: said[:, :tokens])
    assert score(reader, characters, memory, work(flats, "exact")) is None
    said = torch.tensor([list(b" the mat.")])
    assert [each.value for each in score(reader, characters, memory, work(flats, "exact"))] == [1.0] * len(flats)
    said = torch.tensor([list(b"hat mat ")])  # an f1 of 2/3 for all, and so as good as the full cache
    assert [each.value for each in score(reader, characters, memory, work(flats, "f1"))] == [1.0] * len(flats)


def of(task: str, value: float, kept: float = 0.25, model: str = "a", start: float | None = None) -> Result:
    return Result(model, task, Score(value, kept), None if start is None else Score(start, kept))


def test_fitness_is_a_mean_over_tasks_with_a_price() -> None:
    settings = replace(SETTINGS, kept=0.25, price=2.0)
    dear = [of("x", 1.0, 0.5), of("x", 0.0, 0.5), of("y", 0.8, 0.5)]
    assert fitness(dear, settings) == pytest.approx((0.5 + 0.8) / 2 - 2.0 * 0.25)
    assert fitness([of("x", 0.5, 0.2)], settings) == 0.5
    assert fitness([of("x", 1.0), of("x", -math.inf)], settings) == -math.inf


def test_every_model_counts_alike_however_many_samples_it_answers() -> None:
    results = [of("x", 1.0), of("x", 1.0), of("y", 1.0), of("x", 0.0, model="b"), of("x", 0.5, model="b")]
    assert fitness(results, SETTINGS) == pytest.approx((1.0 + 0.25) / 2)


def test_running_text_that_loses_more_than_the_start_is_charged_steeply() -> None:
    settings = replace(SETTINGS, metric="nats", tolerance=0.01)

    def text(value: float, start: float, model: str = "a") -> list[Result]:
        return [of("continuation", value, model=model, start=start), of("pass_key", 0.3, model=model)]

    assert fitness(text(-0.05, -0.045), settings) == pytest.approx(0.25 / 2)  # within the tolerance
    assert fitness(text(-0.05, -0.02), settings) == pytest.approx(0.25 / 2 - STEEP * 0.02)
    assert fitness(text(-0.05, -0.08), settings) == pytest.approx(0.25 / 2), "less loss than the start earns no more"
    both = text(-0.05, -0.02) + text(-0.05, -0.08, model="b")
    assert fitness(both, settings) == pytest.approx(0.25 / 2 - STEEP * 0.02 / 2), (
        "one model's gain pays no other's loss"
    )
    assert fitness(text(-0.05, -0.02), replace(settings, metric="likelihood")) == pytest.approx(0.25 / 2)


def test_the_rise_of_loss_is_that_over_the_start() -> None:
    rows = [of("continuation", -0.3, start=-0.1), of("continuation", -0.1, start=-0.1), of("pass_key", -4.0)]
    assert excess(rows) == pytest.approx(0.1)
    assert excess([of("pass_key", -4.0)]) == 0.0
    assert excess([of("continuation", -0.3, start=-math.inf)]) == 0.0
