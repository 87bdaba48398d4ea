"""Does a model that learns while it forgets live better with it?

Questions about long texts, asked of a base model, of one that learned on its full cache, and of one that learned under
its memory; each with the full cache and with what a memory keeps.

    python benchmarks/tune.py                                        # SmolLM2, three seeds
    python benchmarks/tune.py --model qwen2.5-coder-0.5b --json benchmarks/results/tune-qwen.json

Training texts and test texts come from different documents. Questions come after the decision, as always. What is
learned is kept in --work, and each row as soon as it is there: the same command goes on where it was stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, Setup, load, made_with, parser
from rich.progress import Progress as Bars
from rich.progress import track

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
from namm.tasks.answering import read

TASKS = ("pass_key", "multi_key", "key_value", "passage_retrieval")
BASE, FULL, MEMORY = "base", "full", "memory"
FIRST_TEST = 1_000_000  # seeds of test samples, beyond those of training


def samples(setup: Setup, tasks: list[str], haystack: list[Document], tokens: int, seeds: range) -> list[Sample]:
    """One of each task in turn."""
    makers = [GENERATORS[tasks[number % len(tasks)]] for number in range(len(seeds))]
    return [make(haystack, setup.tokenizer, tokens=tokens, seed=seed) for make, seed in zip(makers, seeds, strict=True)]


def training_documents() -> list[Document]:
    """What the test does not have."""
    return packaged_prose("demo") + split_documents(standard_library_documents(), seed=0)["train"]


def measure(setup: Setup, sample: Sample, kept: float) -> Row:
    """One answer."""
    context, question, answer = (part[0] for part in sample.token_ids(setup.tokenizer))
    policy, _ = setup.policy(*(("full", None) if kept == 1 else ("namm", kept)))
    reading = read(setup.model, [context], policy)
    found, first_choice = reading.score(question, answer)
    return {
        "log_probability": float(found.mean()),
        "correct": bool(first_choice.all()),
        "seen": len(context),
        "kept_fraction": reading.stats.kept_fraction,
    }


def learners(setup: Setup, arguments: Any, training: list[Sample]) -> Iterator[tuple[str, int, Row, Setup]]:
    """Who is asked: how it learned, its seed, what that depends on, and the model."""
    yield BASE, 0, {}, setup
    texts = asked_texts(training, setup.tokenizer)
    for seed in arguments.seeds:
        for learned in (FULL, MEMORY):
            kept = None if learned == FULL else arguments.kept
            settings = TuneConfig(
                "answers", kept, steps=arguments.steps, rank=arguments.rank, alpha=2.0 * arguments.rank, seed=seed
            )
            folder = arguments.work / f"{learned}-{seed}"
            with track_steps(f"learning ({learned}, seed {seed})", arguments.steps) as progress:
                tune(setup.model, setup.memory, texts, folder, settings=settings, progress=progress)
            model, _ = namm.load_model(folder, device=arguments.device)
            depends = {"settings": asdict(settings), "texts": len(texts)}
            depends |= {"under": setup.memory.fingerprint()} if learned == MEMORY else {}
            yield learned, seed, depends, replace(setup, model=model)


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
    options.add_argument("--training", type=int, default=400, help="samples that are learned from")
    options.add_argument("--samples", type=int, default=200, help="samples that are asked")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--kept", type=float, default=0.25, help="while it learns under the memory")
    options.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.25, 0.125], help="when it is asked")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--work", type=Path, help="folder for adapters (beside the results)")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.training, arguments.samples, arguments.steps = 300, 2, 2, 1
        arguments.seeds, arguments.fractions, arguments.rank = arguments.seeds[:1], arguments.fractions[:2], 2
        arguments.tasks = ["pass_key"]
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.work is None:  # what is tried quickly leaves nothing behind
            beside = arguments.json.with_name(f".{arguments.json.stem}-work")
            arguments.work = Path(scratch) if arguments.quick else beside
        run(arguments)


def run(arguments: Any) -> None:
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    training = samples(setup, arguments.tasks, training_documents(), arguments.tokens, range(arguments.training))
    seeds = range(FIRST_TEST, FIRST_TEST + arguments.samples)
    test = samples(setup, arguments.tasks, heldout_documents(code=8), arguments.tokens, seeds)
    for learned, seed, depends, asked in learners(setup, arguments, training):
        for number, sample in enumerate(track(test, f"asking ({learned}, seed {seed})")):
            task = arguments.tasks[number % len(arguments.tasks)]
            what = {"learned": learned, "seed": seed, "task": task, "number": number, "tokens": arguments.tokens}
            for kept in arguments.fractions:
                policy = "full" if kept == 1 else "namm"
                row = partial(measure, asked, sample, kept)
                results.row(row, **what, **depends, policy=policy, aim=kept)
    results.write()


if __name__ == "__main__":
    main()
