from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from evolution.runs import CONFIG, RACED, SETTINGS, evolution, heads, here, memory, setup
from namm import NAMM, load_model
from namm.evolution import Generation, Stage
from namm.evolution.directions import directions
from namm.evolution.fitness import Score, Work
from namm.evolution.report import card, plot, write_events
from namm.evolution.workers import in_process, processes, ray_cluster
from namm.memory.files import MemoryFileError
from namm.tasks import Sample


@pytest.fixture(scope="module")
def raced(reader_folder, tmp_path_factory):
    """A run of two models in two rounds, in nats, along directions."""
    model, tokenizer = load_model(reader_folder)
    folder = tmp_path_factory.mktemp("raced")
    return evolution(here(model, tokenizer, RACED), tokenizer, folder, RACED).run(), folder


@pytest.fixture(scope="module")
def uninterrupted(reader_folder, tmp_path_factory):
    model, tokenizer = load_model(reader_folder)
    folder = tmp_path_factory.mktemp("whole")
    history: list[Generation] = []
    run = evolution(here(model, tokenizer), tokenizer, folder, report=history.append)
    return run.run(), history, folder


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


def rows(folder: Path) -> dict[str, list]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return {row["key"]: row["scores"] for row in lines if "scores" in row}


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


def program(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / "runs.py"), *map(str, arguments)]


def test_kill_minus_nine_in_the_middle_of_a_generation(uninterrupted, reader_folder, tmp_path):
    outcome, _, _ = uninterrupted
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(program(reader_folder, tmp_path, int(signal.SIGKILL), 7), env=environment)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 7
    subprocess.run(program(reader_folder, tmp_path), env=environment, check=True)
    assert torch.equal(NAMM.from_pretrained(tmp_path).flat, outcome.memory.flat)


def test_kill_minus_nine_in_the_second_round_of_a_race(reader_folder, tmp_path):
    """The first generation's first round is the directions, four samples of a validation and two of the round."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    subprocess.run(program(reader_folder, whole, 0, 0, 0, 1), env=environment, check=True)
    killed = subprocess.run(program(reader_folder, halted, int(signal.SIGKILL), 7, 0, 1), env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert "s0 g0 0 pass_key 1" in rows(halted) and "s0 g0 0 continuation 1" not in rows(halted)
    subprocess.run(program(reader_folder, halted, 0, 0, 0, 1), env=environment, check=True)
    assert (halted / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (halted / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


@pytest.mark.fault("C19", siblings="a parent that is killed, which can tell its workers nothing")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(reader_folder, tmp_path, how):
    """Also one that waits for work: the signal comes after the last sample of the first validation."""
    run = subprocess.Popen(program(reader_folder, tmp_path, int(how), 4, 1), stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split() if psutil.pid_exists(int(pid))]
    _, left = psutil.wait_procs(workers, timeout=60)
    for worker in left:
        worker.kill()
    assert run.wait() == -how and workers and not left


def killing(children, after: int):
    """A progress callback that kills one of the processes when some samples are done."""
    killed: list[int] = []

    def progress(label: str, done: int, total: int) -> None:
        if done == after and not killed:
            victim = children()[0]
            killed.append(victim.pid)
            victim.kill()

    return progress, killed


@pytest.mark.parametrize("race", [False, True])
def test_a_worker_that_is_killed_loses_no_candidate(uninterrupted, reader_folder, tmp_path, race):
    """With one model, and in a race with two."""
    known = setup(reader_folder)
    if race:
        shutil.copytree(reader_folder, tmp_path / "other")
        known = replace(known, models=known.models | setup(tmp_path / "other").models)
    settings = replace(RACED if race else SETTINGS, models=tuple(known.models))
    _, tokenizer = load_model(reader_folder)
    scorer = processes(known, 2)
    mine = psutil.Process()

    def workers():
        return [c for c in mine.children(recursive=True) if "spawn_main" in " ".join(c.cmdline())]

    progress, killed = killing(workers, after=1)
    found = evolution(scorer, tokenizer, tmp_path / "killed", settings, progress=progress).run()
    assert killed
    alone = here(*load_model(reader_folder), settings)
    outcome = evolution(alone, tokenizer, tmp_path / "alone", settings).run() if race else uninterrupted[0]
    assert torch.equal(found.memory.flat, outcome.memory.flat)
    assert found.history == outcome.history


class Deadly(NAMM):
    """A memory that kills the third worker that reads it, once."""

    log: Path

    def __reduce__(self):
        return deadly, (self.log, self.flat)


def deadly(log: Path, flat: torch.Tensor) -> NAMM:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(log.read_text().splitlines()) >= 3:
        with contextlib.suppress(FileExistsError):
            log.with_suffix(".killed").open("x").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return NAMM(CONFIG, flat)


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray")
    os.environ.update(RAY_worker_niceness="0")  # its workers are so polite that they starve on a busy machine
    found.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield found
    found.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    found.shutdown()


@pytest.mark.fault("E25", siblings="the test of kill -9, which polled for a line in a file")
def test_a_ray_worker_that_is_killed_loses_no_candidate(uninterrupted, reader_folder, tmp_path, ray):
    outcome, _, _ = uninterrupted
    _, tokenizer = load_model(reader_folder)
    start = Deadly(CONFIG)
    start.log = tmp_path / "workers.log"
    scorer = ray_cluster(setup(reader_folder, start), "local")
    settings = replace(SETTINGS, models=(str(reader_folder),))
    resumed = evolution(scorer, tokenizer, tmp_path / "run", settings).run()
    assert (tmp_path / "workers.killed").exists(), "no Ray worker was killed"
    assert torch.equal(resumed.memory.flat, outcome.memory.flat)


@pytest.mark.fault("A11", siblings="processes of one machine, when the files of a model were replaced")
def test_a_ray_worker_scores_with_the_model_of_its_run(reader, characters, reader_folder, tmp_path, ray):
    """Two runs in one process share Ray's workers."""
    other = copy.deepcopy(reader)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.mul_(3)
    shutil.copytree(reader_folder, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    flats = memory().flat + torch.linspace(-3, 3, 4)[:, None]
    sample = Sample("the cat sat on the mat and looked at the moon; " * 3, " the", " cat")
    work = Work("key", str(reader_folder), sample, "likelihood", flats)
    both = replace(setup(reader_folder), models=setup(reader_folder).models | setup(tmp_path / "other").models)
    for known in (setup(reader_folder), setup(tmp_path / "other"), both):
        for name in known.models:
            [(_, found)] = ray_cluster(known, "local")([replace(work, model=name)])
            [(_, wanted)] = in_process({name: load_model(name)}, memory())([replace(work, model=name)])
            assert [score.value for score in found] == pytest.approx([score.value for score in wanted], rel=1e-4)
    with pytest.raises(ValueError, match="finds another model under"):
        list(ray_cluster(replace(both, models={str(reader_folder): "of before"}), "local")([work]))


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
