from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from evolution.runs import CONFIG, RACED, SETTINGS, evolution, here, memory
from namm import NAMM, load_model
from namm.evolution import Stage
from namm.evolution.directions import directions
from namm.evolution.fitness import Score
from namm.evolution.report import card, plot, write_events
from namm.memory.files import MemoryFileError


def test_a_run_goes_through_its_stages_and_saves_its_best(uninterrupted):
    outcome, history, folder = uninterrupted
    assert [(g.stage, g.generation) for g in history] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert tuple(history) == outcome.history
    assert [g.validation is not None for g in history] == [False, True, True, False, True]
    assert all(len(g.fitness) == 4 for g in history)
    assert torch.equal(NAMM.from_pretrained(folder).flat, outcome.memory.flat)
    assert all(best >= first for first, best in outcome.validation) and len(outcome.validation) == 2
    assert len(outcome.start.scores) == len(outcome.final.scores) == SETTINGS.test
    dear = SETTINGS.price * max(0.0, outcome.final.kept - SETTINGS.kept)
    assert outcome.final.fitness == pytest.approx(outcome.final.value - dear)
    assert not torch.equal(outcome.memory.flat, memory().flat), "nothing better was ever found"


def test_an_interrupted_run_ends_as_an_uninterrupted_one(uninterrupted, reader_folder, tmp_path):
    outcome, history, _ = uninterrupted
    model, tokenizer = load_model(reader_folder)
    whole = here(model, tokenizer)
    left = 9  # samples, in the middle of a generation

    def stops(works):
        nonlocal left
        for result in whole(works):
            if not left:
                raise KeyboardInterrupt
            left -= 1
            yield result

    with pytest.raises(KeyboardInterrupt):
        evolution(stops, tokenizer, tmp_path).run()
    measured = []

    def counts(works):
        for result in whole(works):
            measured.append(result[0])
            yield result

    resumed = evolution(counts, tokenizer, tmp_path).run()
    assert torch.equal(resumed.memory.flat, outcome.memory.flat)
    assert resumed == replace(outcome, memory=resumed.memory)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 9 + len(measured), "something was measured twice"


def test_a_run_may_go_the_way_to_another_memory(reader, characters, tmp_path):
    """Which it depends on by its weights, not by its name."""
    noise = torch.randn(memory().flat.shape, generator=torch.Generator().manual_seed(0))
    for name, size in (("near", 0.1), ("far", 1.0)):
        NAMM(CONFIG, memory().flat + size * noise).save_pretrained(tmp_path / name)
    settings = replace(RACED, towards=str(tmp_path / "near"), stages=(Stage(("pass_key",), (70,), 2, 1),))
    evolution(here(reader, characters, settings), characters, tmp_path / "run", settings).run()
    measured = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])["spreads"]
    assert len(measured) == len(directions(memory(), NAMM.from_pretrained(tmp_path / "near")))
    with pytest.raises(ValueError, match="differs in: towards;"):
        other = replace(settings, towards=str(tmp_path / "far"))
        evolution(here(reader, characters, other), characters, tmp_path / "run", other).run()
    with pytest.raises(MemoryFileError, match="no memory 'nowhere'"):
        evolution(here(reader, characters), characters, tmp_path / "new", replace(RACED, towards="nowhere"))


def test_early_stopping_ends_a_stage(reader, characters, tmp_path):
    settings = replace(SETTINGS, patience=1, validate_every=1, sigma=1e-9, stages=(Stage(("pass_key",), (70,), 1, 9),))
    outcome = evolution(here(reader, characters), characters, tmp_path, settings).run()
    assert len(outcome.history) < 9


def once(reader, characters):
    """Scores one sample and stops."""

    def run(works):
        yield next(iter(here(reader, characters)(works)))
        raise KeyboardInterrupt

    return run


@pytest.mark.fault("A11", siblings="the start's normalisation and configuration, which were not asked for either")
@pytest.mark.parametrize(
    "other, named",
    [
        ({"settings": replace(SETTINGS, seed=1)}, "settings"),
        ({"settings": replace(SETTINGS, population=6)}, "settings"),
        ({"models": {name: "another" for name in SETTINGS.models}}, "models"),
        ({"start": NAMM(replace(CONFIG, update_interval=64))}, "start"),
    ],
)
def test_a_folder_of_another_run_is_refused(reader, characters, tmp_path, other, named):
    with pytest.raises(KeyboardInterrupt):
        evolution(once(reader, characters), characters, tmp_path).run()
    with pytest.raises(ValueError, match=f"work of another evolution, which differs in: {named};"):
        evolution(once(reader, characters), characters, tmp_path, **other).run()
    with pytest.raises(KeyboardInterrupt):
        evolution(once(reader, characters), characters, tmp_path).run()


@pytest.mark.fault("C19", siblings="a text file that is missing")
def test_a_first_try_that_fails_claims_nothing(reader, characters, tmp_path):
    with pytest.raises(ValueError, match="seed = -1: a seed is 0 or more"):
        replace(SETTINGS, seed=-1)
    longer = replace(SETTINGS, stages=(Stage(("pass_key",), (10**6,), 1, 1),))
    with pytest.raises(ValueError, match="589 tokens and 999977 are needed"):
        evolution(once(reader, characters), characters, tmp_path, longer).run()
    with pytest.raises(KeyboardInterrupt):
        evolution(once(reader, characters), characters, tmp_path).run()


@pytest.mark.fault("B12")
def test_a_folder_of_something_else_is_refused(reader, characters, tmp_path):
    (tmp_path / "model.safetensors").write_text("of a model")
    with pytest.raises(ValueError, match="no run of namm .* wrote"):
        evolution(here(reader, characters), characters, tmp_path)


@pytest.mark.fault("A8", siblings="candidates that fail on different samples")
@pytest.mark.parametrize("failing", [{0, 1, 2, 3}, {0, 1}])
def test_a_generation_in_which_all_fail_ends_the_run(reader, characters, tmp_path, failing):
    whole = here(reader, characters)

    def breaks(works):
        for number, (key, scores) in enumerate(whole(works)):
            lost = failing if number % 2 == 0 else {0, 1, 2, 3} - failing
            broken = [Score(-math.inf, 1.0, "out of memory") if i in lost else s for i, s in enumerate(scores)]
            yield key, scores if len(scores) == 1 else broken

    with pytest.raises(ValueError, match=r"s0 g0: all candidates failed \(out of memory\): try a smaller"):
        evolution(breaks, characters, tmp_path).run()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_card_says_what_was_asked_for(raced):
    text = card(raced[0], RACED, "some words").replace("\n", " ")
    assert "on reader, other from universal" in text and "3 generations, 12 candidates in 2 rounds each" in text
    assert "72 samples scored" in text and "nats, 0 = full cache" in text and "beyond 0.0 nats a token" in text


def test_plot_events_and_card(uninterrupted, tmp_path):
    outcome, _, _ = uninterrupted
    plot(outcome, SETTINGS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    for _ in range(2):
        write_events(outcome.history, tmp_path)
    assert len(list(tmp_path.glob("events.*"))) == 1
    text = card(outcome, SETTINGS, "some words")
    assert (
        "population 4" in text
        and "5 generations, 20 candidates in" in text.replace("\n", " ")
        and f"{outcome.gain[0]:+.3f}" in text
    )
