"""Does a model that learns while it forgets live better with it?

Questions about long texts, asked of a base model, of one that learned on its full cache, and of one that learned under
its memory; each with the full cache and with what a memory keeps.

    python benchmarks/tune.py                                        # SmolLM2, three seeds
    python benchmarks/tune.py --model qwen2.5-coder-0.5b --json benchmarks/results/tune-qwen.json
    python benchmarks/tune.py --device cuda --engine ragged --masked ragged --workers 7       # side by side on a GPU

Training texts and test texts come from different documents. Questions come after the decision, as always. What is
learned is kept in --work, and each row as soon as it is there: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, Setup, command_of, load, made_with, parser
from rich.progress import Progress as Bars
from rich.progress import track
from torch import Tensor

import namm
from namm.learning import TuneConfig, asked_texts, tune
from namm.support.runs import Progress
from namm.tasks import (
    GENERATORS,
    Document,
    Sample,
    heldout_documents,
    packaged_prose,
    split_documents,
    standard_library_documents,
)
from namm.tasks.answering import Reading, read

TASKS = ("pass_key", "multi_key", "key_value", "passage_retrieval")
BASE, FULL, MEMORY = "base", "full", "memory"
FIRST_TEST = 1_000_000  # seeds of test samples, beyond those of training


def contexts(setup: Setup, arguments: Any, haystack: list[Document], seeds: range) -> list[list[Sample]]:
    """One of each task in turn, with so many questions about each."""

    def about(number: int, seed: int) -> list[Sample]:
        make = partial(GENERATORS[arguments.tasks[number % len(arguments.tasks)]], haystack, setup.tokenizer)
        options = {"tokens": arguments.tokens, "seed": seed}
        others = range(1, arguments.questions)
        return [make(**options), *(make(**options, question=number) for number in others)]  # type: ignore[call-arg]

    return [about(number, seed) for number, seed in enumerate(seeds)]


def training_documents() -> list[Document]:
    """What the test does not have."""
    return packaged_prose("demo") + split_documents(standard_library_documents(), seed=0)["train"]


@dataclass
class Asked:
    """A context that is read once for all questions about it, when the first is asked."""

    setup: Setup
    context: Tensor
    kept: float
    engine: str

    @cached_property
    def reading(self) -> Reading:
        policy, _ = self.setup.policy(*(("full", None) if self.kept == 1 else ("namm", self.kept)))
        return read(self.setup.model, [self.context], policy, engine="loops" if self.kept == 1 else self.engine)


def measure(asked: Asked, question: Tensor, answer: Tensor) -> Row:
    """One answer."""
    reading = asked.reading.fork()
    found, first_choice = reading.score(question, answer)
    return {
        "log_probability": float(found.mean()),
        "correct": bool(first_choice.all()),
        "seen": len(asked.context),
        "kept_fraction": reading.stats.kept_fraction,
    }


def learners(arguments: Any) -> list[tuple[str, int]]:
    """Who is asked: on what it learned, and its seed."""
    return [(learned, seed) for learned in arguments.learned for seed in ([0] if learned == BASE else arguments.seeds)]


def taught(setup: Setup, arguments: Any, training: list[Sample], learned: str, seed: int) -> tuple[Setup, Row]:
    """The model that has learned, and what that depends on."""
    if learned == BASE:
        return setup, {}
    texts, under_memory = asked_texts(training, setup.tokenizer), learned == MEMORY
    settings = TuneConfig(
        "answers",
        arguments.kept if under_memory else None,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        rank=arguments.rank,
        alpha=2.0 * arguments.rank,
        masked=arguments.masked if under_memory else None,
        seed=seed,
    )
    folder = arguments.work / f"{learned}-{seed}"
    with track_steps(f"learning ({learned}, seed {seed})", arguments.steps) as progress:
        tune(setup.model, setup.memory, texts, folder, settings=settings, progress=progress)
    model, _ = namm.load_model(folder, device=arguments.device)
    depends = {"settings": asdict(settings), "texts": len(texts)}
    depends |= {"under": setup.memory.fingerprint()} if under_memory else {}
    return replace(setup, model=model), depends


@contextmanager
def track_steps(name: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    """A bar for `tune`."""
    with Bars() as shown:
        task = shown.add_task(name, total=steps)
        yield lambda now: shown.update(task, completed=now.done, description=f"{name}, {now.note}")


def main() -> None:
    options = parser(__doc__, "tune")
    options.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(GENERATORS))
    options.add_argument("--tokens", type=int, default=2048, help="of a context")
    options.add_argument("--training", type=int, default=400, help="contexts that are learned from")
    options.add_argument("--samples", type=int, default=200, help="contexts that are asked about")
    options.add_argument("--questions", type=int, default=1, help="about each context, if its task has several")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--learning-rate", type=float, default=TuneConfig.learning_rate)
    options.add_argument("--kept", type=float, default=0.25, help="while it learns under the memory")
    options.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.25, 0.125], help="when it is asked")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--learned", nargs="+", default=[BASE, FULL, MEMORY], choices=[BASE, FULL, MEMORY])
    options.add_argument("--engine", default="loops", help="of the cache when it is asked")
    options.add_argument("--masked", help="engine that decides beforehand while it learns, see `namm tune`")
    options.add_argument("--workers", type=int, default=0, help="processes, each with one learner at a time")
    options.add_argument("--work", type=Path, help="folder for adapters (beside the results)")
    arguments = options.parse_args()
    if arguments.questions > 1 and "pass_key" in arguments.tasks:
        options.error("of a context of pass_key only one thing can be asked: name other --tasks")
    if arguments.quick:
        arguments.tokens, arguments.training, arguments.samples, arguments.steps = 300, 2, 2, 1
        arguments.seeds, arguments.fractions, arguments.rank = arguments.seeds[:1], arguments.fractions[:2], 2
        arguments.tasks = ["pass_key"]
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.work is None:  # what is tried quickly leaves nothing behind
            beside = arguments.json.with_name(f".{arguments.json.stem}-work")
            arguments.work = Path(scratch) if arguments.quick else beside
        side_by_side(arguments) if arguments.workers else run(arguments)


def run(arguments: Any) -> None:
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    groups = contexts(setup, arguments, training_documents(), range(arguments.training))
    training = [sample for group in groups for sample in group]
    seeds = range(FIRST_TEST, FIRST_TEST + arguments.samples)
    test = contexts(setup, arguments, heldout_documents(code=8), seeds)
    for learned, seed in learners(arguments):
        learner, depends = taught(setup, arguments, training, learned, seed)
        for number, group in enumerate(track(test, f"asking ({learned}, seed {seed})")):
            task = arguments.tasks[number % len(arguments.tasks)]
            what = {"learned": learned, "seed": seed, "task": task, "number": number, "tokens": arguments.tokens}
            ids = [[part[0] for part in sample.token_ids(setup.tokenizer)] for sample in group]
            for kept in arguments.fractions:
                policy, asked = "full" if kept == 1 else "namm", Asked(learner, ids[0][0], kept, arguments.engine)
                for question, (_, words, answer) in enumerate(ids):
                    row = partial(measure, asked, words, answer)
                    results.row(row, **what, question=question, **depends, policy=policy, aim=kept)
    results.write()


def side_by_side(arguments: Any) -> None:
    """The same command for each learner alone, with a file of its own in the folder of adapters; then one of all."""

    def alone(learner: tuple[str, int]) -> Path:
        learned, seed = learner
        part: Path = arguments.work / f"{learned}-{seed}.json"
        own = ["--workers", "0", "--learned", learned, "--seeds", str(seed), "--json", str(part)]
        argv = [*sys.argv, "--work", str(arguments.work), *own]
        if not part.exists() or json.loads(part.read_text())["command"] != command_of(argv):  # of other options
            with part.with_suffix(".log").open("w") as log:
                subprocess.run([sys.executable, *argv], check=True, stdout=log, stderr=subprocess.STDOUT)
        return part

    arguments.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.workers) as pool:
        parts = [json.loads(part.read_text()) for part in pool.map(alone, learners(arguments))]
    made = {name: parts[0][name] for name in ("model", "memory", "versions", "machine")}
    results = Measurements(arguments, made)
    results.rows = [row for part in parts for row in part["rows"]]
    results.write()


if __name__ == "__main__":
    main()
