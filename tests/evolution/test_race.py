from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from evolution.runs import RACED, evolution, heads, here, memory, rows
from namm import load_model
from namm.evolution.fitness import Score
from namm.evolution.race import GAP, better_half, ranked


def test_the_better_half_goes_on_in_its_old_order():
    assert better_half([0, 1, 2, 3], [0.1, 0.9, 0.2, 0.3]) == [1, 3]
    assert better_half([0, 2, 3], [0.1, 9.0, 0.2, 0.3]) == [2, 3], "candidate 1 was dropped before"
    assert better_half([0, 1, 2], [0.5, 0.5, 0.5]) == [0, 1], "of equals the first"
    assert better_half([0, 1, 2, 3], [-math.inf, 0.1, -math.inf, -1.0]) == [1, 3]


def test_none_that_was_dropped_is_as_good_as_one_that_went_on():
    values, rounds = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0], [1, 3, 2, 3, 1, 2]
    told = ranked(values, rounds)
    assert told[1] == 1.0 and told[3] == 2.0
    assert told[5] == pytest.approx(1.0 - GAP) and told[2] == pytest.approx(1.0 - GAP - 5.0)
    assert told[0] == pytest.approx(told[2] - GAP) and told[4] == pytest.approx(told[0] - 2.0)


def test_values_that_are_in_order_stay():
    assert ranked([0.5, 1.0, 0.1, 2.0], [1, 2, 1, 2]) == [0.5, 1.0, 0.1, 2.0]


def test_who_fails_is_the_worst_of_all():
    assert ranked([-math.inf, 0.5, -math.inf], [2, 1, 1]) == [-math.inf, 0.5, -math.inf]


def test_weak_candidates_are_scored_on_the_first_round_only(raced):
    outcome, folder = raced
    found = rows(folder)
    for model in (0, 1):
        assert len(found[f"s0 g0 {model} pass_key 0"]) == 4
        assert len(found[f"s0 g0 {model} pass_key 1"]) == 2
        assert len(found[f"s0 g0 {model} continuation 0"]) == 5, "the start is asked about running text too"
        assert len(found[f"s0 g0 {model} continuation 1"]) == 3
    for generation in outcome.history:
        assert generation.samples == 2 * 2 * (4 + 2)
        dropped, survived = (sorted(generation.fitness)[half] for half in (slice(2), slice(2, 4)))
        assert max(dropped) < min(survived)


def test_all_candidates_of_a_generation_see_the_same_samples(raced, reader_folder, tmp_path):
    """And another generation sees others."""
    model, tokenizer = load_model(reader_folder)
    seen: dict[str, set[tuple[str, str]]] = {}
    whole = here(model, tokenizer, RACED)

    def watches(works):
        for work in works:
            seen.setdefault(work.key, set()).add((work.model, work.sample.prompt))
            if " continuation " in work.key:
                assert torch.equal(work.flats[0], memory().flat), "running text is not measured against the start"
        yield from whole(works)

    evolution(watches, tokenizer, tmp_path, RACED).run()
    assert all(len(own) == 1 for own in seen.values())
    assert seen["s0 g0 0 pass_key 0"] != seen["s0 g1 0 pass_key 0"]
    assert {model for own in seen.values() for model, _ in own} == set(RACED.models)


@pytest.mark.parametrize("left", [0, 5, 11, 20])
def test_a_race_that_is_interrupted_ends_as_an_uninterrupted_one(raced, reader_folder, tmp_path, left):
    """In a validation, in a first and in a second round; directions are measured once."""
    outcome, folder = raced
    model, tokenizer = load_model(reader_folder)
    whole, recorded = here(model, tokenizer, RACED), []

    def stops(works):
        for number, result in enumerate(whole(works)):
            if len(lines()) > left and number:
                raise KeyboardInterrupt
            yield result

    def lines() -> list[str]:
        return (tmp_path / "journal.jsonl").read_text().splitlines()

    def records(one):
        recorded.append(one.model)
        return heads(one)

    with pytest.raises(KeyboardInterrupt):
        evolution(stops, tokenizer, tmp_path, RACED, record=records).run()
    resumed = evolution(whole, tokenizer, tmp_path, RACED, record=records).run()
    assert torch.equal(resumed.memory.flat, outcome.memory.flat)
    assert resumed == replace(outcome, memory=resumed.memory)
    assert sorted(recorded) == sorted(RACED.models)
    assert sorted(lines()) == sorted((folder / "journal.jsonl").read_text().splitlines())


def test_candidates_that_fail_in_a_race_are_the_only_ones_that_do(reader_folder, tmp_path):
    """One fails at once, and both that go on fail then: what the fourth was worth stays, and the run goes on."""
    model, tokenizer = load_model(reader_folder)
    lost = Score(-math.inf, 1.0, "out of memory")

    def breaks(works):
        for key, scores in here(model, tokenizer, RACED)(works):
            first = [lost, *scores[1:]] if key == "s0 g0 0 pass_key 0" else scores
            yield key, [lost, lost] if key == "s0 g0 0 pass_key 1" else first

    outcome = evolution(breaks, tokenizer, tmp_path, RACED).run()
    told = outcome.history[0].fitness
    assert told[0] == -math.inf and sum(map(math.isfinite, told)) == 1
    assert [one.failed for one in outcome.history] == [3, 0, 0]
    again = evolution(breaks, tokenizer, tmp_path, RACED).run()
    assert torch.equal(again.memory.flat, outcome.memory.flat) and again.history == outcome.history
