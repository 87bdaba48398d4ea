from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import namm.evolution.fitness
from namm import NAMM, NAMMConfig
from namm.evaluation import answer_score
from namm.evolution.fitness import Score, Work, fitness, score
from namm.policies import Full, NAMMPolicy
from namm.tasks import Sample
from namm.tasks.answering import read

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
    return Work("key", SAMPLE, metric, flats)


@pytest.mark.parametrize("context", [20, 31, 32, 33, 100])
def test_a_population_at_once_equals_its_members_one_by_one(reader, memory, flats, context) -> None:
    ids = torch.randint(97, 122, (1, context + 12), generator=torch.Generator().manual_seed(1))
    parts = ids.split([context, 7, 5], dim=1)
    policy = namm.evolution.fitness.PopulationPolicy(replace(memory, flat=flats))
    reading = read(reader, [parts[0][0]], policy, rows=len(flats))
    kept, (found, _) = reading.stats.kept_fractions, reading.score(parts[1][0], parts[2][0])
    assert found.shape == (5, 5)
    for member, flat in enumerate(flats):
        alone = answer_score(reader, *parts, NAMMPolicy(replace(memory, flat=flat)))
        assert float(found[member].mean()) == pytest.approx(alone.log_probability, abs=1e-4)
        assert kept[member] == pytest.approx(alone.kept_fraction)
    if context >= 32:
        assert len(set(kept)) > 1, "all members keep the same: nothing was compared"


def test_generated_answers_equal_greedy_ones(reader, memory, flats) -> None:
    ids = torch.randint(97, 122, (1, 60), generator=torch.Generator().manual_seed(1))
    parts = ids.split([50, 5, 5], dim=1)
    everything = flats.clone()
    everything[:, -1] += 1e6
    policy = namm.evolution.fitness.PopulationPolicy(replace(memory, flat=everything))
    reading = read(reader, [parts[0][0]], policy, rows=5)
    kept, found = reading.stats.kept_fractions, reading.generate([parts[1][0]], 5)
    wanted = reader.generate(ids[:, :55], max_new_tokens=5, do_sample=False, eos_token_id=None)[:, 55:]
    assert kept == [1.0] * 5
    assert torch.equal(found, wanted.expand(5, -1))


def test_keeping_everything_scores_one(reader, characters, memory, flats) -> None:
    flats[0, -1] = 1e6
    scores = score(reader, characters, memory, work(flats))
    assert scores[0].value == pytest.approx(1.0, abs=1e-4) and scores[0].kept == 1.0
    assert all(s.kept < 1 for s in scores[1:3])


def test_a_member_that_breaks_is_the_only_one_that_fails(reader, characters, memory, flats) -> None:
    sound = score(reader, characters, memory, work(flats))
    broken = flats.clone()
    broken[2] = math.nan
    broken[3] *= 1e30  # finite, but the network's values are not
    scores = score(reader, characters, memory, work(broken))
    assert [math.isfinite(s.value) for s in scores] == [True, True, False, False, True]
    assert "NaN" in scores[2].error and "NaN" in scores[3].error
    for i in (0, 1, 4):
        assert scores[i].value == pytest.approx(sound[i].value, rel=1e-4)


def test_out_of_memory_is_met_with_fewer_at_once(reader, characters, memory, flats, monkeypatch) -> None:
    wanted = score(reader, characters, memory, work(flats))
    whole = namm.evolution.fitness.read

    def greedy(*arguments, rows, **options):
        if rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(*arguments, rows=rows, **options)

    monkeypatch.setattr(namm.evolution.fitness, "read", greedy)
    found = score(reader, characters, memory, work(flats))
    assert [s.value for s in found] == pytest.approx([s.value for s in wanted], rel=1e-4)

    def never(*arguments, rows, **options):
        if rows > 1 or not isinstance(arguments[2], namm.policies.Full):
            raise torch.OutOfMemoryError("out of memory")
        return whole(*arguments, rows=rows, **options)

    monkeypatch.setattr(namm.evolution.fitness, "read", never)
    assert {(s.value, s.error) for s in score(reader, characters, memory, work(flats))} == {
        (-math.inf, "out of memory")
    }


def test_an_error_of_ours_is_not_swallowed(reader, characters, memory, flats, monkeypatch) -> None:
    whole = namm.evolution.fitness.read

    def wrong(*arguments, rows, **options):
        if rows > 1:
            raise RuntimeError("shapes do not match")
        return whole(*arguments, rows=rows, **options)

    monkeypatch.setattr(namm.evolution.fitness, "read", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        score(reader, characters, memory, work(flats))


def test_a_sample_that_the_full_cache_cannot_answer_compares_nothing(reader, characters, memory, flats) -> None:
    assert score(reader, characters, memory, work(flats, "exact")) is None


@pytest.mark.fault("A10", siblings="answers are no longer cut where their reference ends")
def test_an_answer_that_goes_on_is_another(reader, characters, memory, flats, monkeypatch) -> None:
    said = torch.tensor([list(b" the mats")])
    read = namm.evolution.fitness.read

    def reading(*arguments, rows, **options):
        found = read(*arguments, rows=rows, **options)
        object.__setattr__(found, "generate", lambda questions, tokens: said[:, :tokens].expand(rows, -1))
        return found

    monkeypatch.setattr(namm.evolution.fitness, "read", reading)
    assert score(reader, characters, memory, work(flats, "exact")) is None
    said = torch.tensor([list(b" the mat.")])
    assert [each.value for each in score(reader, characters, memory, work(flats, "exact"))] == [1.0] * len(flats)
    said = torch.tensor([list(b"hat mat ")])  # an f1 of 2/3 for all, and so as good as the full cache
    assert [each.value for each in score(reader, characters, memory, work(flats, "f1"))] == [1.0] * len(flats)


def test_an_answer_ends_where_the_model_ends_it(reader, characters, memory, flats, monkeypatch) -> None:
    """Nothing that comes after the model's end is read as its answer."""
    context, question, _ = SAMPLE.token_ids(characters)
    plain = read(reader, [context[0]], Full()).generate([question[0]], 6)[0].tolist()
    monkeypatch.setattr(reader.generation_config, "eos_token_id", plain[2])
    found = read(reader, [context[0]], Full(), rows=3, pad=0).generate([question[0]], 6)
    assert found.tolist() == [plain[: plain.index(plain[2]) + 1]] * 3


def test_fitness_is_a_mean_over_tasks_with_a_price() -> None:
    rows = [[Score(1.0, 0.5), Score(0.5, 0.2)], [Score(0.0, 0.5), Score(0.5, 0.2)], [Score(0.8, 0.5), Score(0.5, 0.2)]]
    found = fitness(rows, ["a", "a", "b"], kept=0.25, price=2.0)
    assert found == pytest.approx([(0.5 + 0.8) / 2 - 2.0 * 0.25, 0.5])
    assert fitness([[Score(-math.inf, 1.0), Score(1.0, 0.2)]], ["a"], 0.25, 1.0)[0] == -math.inf


def test_the_full_cache_scores_a_sample_once(reader, characters, memory, flats, monkeypatch) -> None:
    calls = []
    whole = namm.evolution.fitness.read
    monkeypatch.setattr(namm.evolution.fitness, "read", lambda *a, **k: calls.append(k["rows"]) or whole(*a, **k))
    known: dict[bytes, float] = {}
    first = score(reader, characters, memory, work(flats), known)
    assert score(reader, characters, memory, work(flats), known) == first
    assert calls == [1, 5, 5]
