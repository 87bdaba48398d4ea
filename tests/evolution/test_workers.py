"""What is lost with a process: nothing."""

from __future__ import annotations

import contextlib
import copy
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

from evolution.runs import CONFIG, RACED, SETTINGS, evolution, here, memory, rows, setup
from namm import NAMM, load_model
from namm.evolution.fitness import Work
from namm.evolution.workers import in_process, processes, ray_cluster
from namm.tasks import Sample


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
    for one, other in zip(found.history, outcome.history, strict=True):  # scores of two processes: but for rounding
        scores = [*other.fitness, other.validation or 0.0]
        assert [*one.fitness, one.validation or 0.0] == pytest.approx(scores, rel=1e-5)
        assert replace(one, fitness=(), validation=None) == replace(other, fitness=(), validation=None)


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
