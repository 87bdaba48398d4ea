"""Contexts with questions, to learn from and to be asked about; how a model learns, and what it answers."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, Setup
from rich.progress import track
from torch import Tensor

import namm
from namm.cli.progress import progress_of_runs
from namm.learning import TuneConfig, asked_texts, tune
from namm.support.fingerprints import model_fingerprint
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
MOST_QUESTIONS = {"multi_key": 4, "hidden_fact": 3, "key_value": 8, "passage_retrieval": 4, "dialogue_topic": 2}
FIRST_TEST = 1_000_000  # seeds of contexts that are asked about, beyond those that are learned from


def add_lessons(options: argparse.ArgumentParser) -> None:
    """The options of all that learn and are asked."""
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
    options.add_argument("--engine", default="loops", help="of the cache when it is asked")
    options.add_argument("--masked", help="engine that decides beforehand while it learns, see `namm tune`")
    options.add_argument("--work", type=Path, help="folder for adapters (beside the results)")


@contextmanager
def parsed(options: argparse.ArgumentParser) -> Iterator[Any]:
    """The options; within it there is a folder for adapters. What is tried quickly leaves nothing behind."""
    arguments = options.parse_args()
    if few := [task for task in arguments.tasks if arguments.questions > MOST_QUESTIONS.get(task, 1)]:
        options.error(f"about a context of {', '.join(few)} not so many things can be asked: fewer --questions")
    if arguments.quick:
        arguments.tokens, arguments.training, arguments.samples, arguments.steps = 300, 2, 2, 1
        arguments.fractions, arguments.rank, arguments.tasks = arguments.fractions[:2], 2, ["multi_key"]
        arguments.questions = 2
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.work is None:
            beside = arguments.json.with_name(f".{arguments.json.stem}-work")
            arguments.work = Path(scratch) if arguments.quick else beside
        yield arguments


def training_documents() -> list[Document]:
    """What the test does not have."""
    return packaged_prose("demo") + split_documents(standard_library_documents(), seed=0)["train"]


def to_learn(setup: Setup, arguments: Any) -> list[Sample]:
    """Questions to learn from."""
    groups = _contexts(setup, arguments, training_documents(), range(arguments.training))
    return [sample for group in groups for sample in group]


def to_ask(setup: Setup, arguments: Any) -> list[list[Sample]]:
    """Questions by their contexts, which are cut from held-out texts."""
    return _contexts(setup, arguments, heldout_documents(code=8), range(FIRST_TEST, FIRST_TEST + arguments.samples))


def _contexts(setup: Setup, arguments: Any, haystack: list[Document], seeds: range) -> list[list[Sample]]:
    """One of each task in turn, with so many questions about each."""

    def about(number: int, seed: int) -> list[Sample]:
        make = partial(GENERATORS[arguments.tasks[number % len(arguments.tasks)]], haystack, setup.tokenizer)
        options = {"tokens": arguments.tokens, "seed": seed}
        others = range(1, arguments.questions)  # only of tasks that take `question`, see `MOST_QUESTIONS`
        return [make(**options), *(make(**options, question=other) for other in others)]  # type: ignore[call-arg]

    return [about(number, seed) for number, seed in enumerate(seeds)]


def settings_of(arguments: Any, under_memory: bool, seed: int) -> TuneConfig:
    """How a model learns the answers."""
    return TuneConfig(
        "answers",
        arguments.kept if under_memory else None,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        rank=arguments.rank,
        alpha=2.0 * arguments.rank,
        masked=arguments.masked if under_memory else None,
        seed=seed,
    )


def taught(setup: Setup, samples: Sequence[Sample], folder: Path, settings: TuneConfig) -> tuple[Setup, Row]:
    """The model that has learned in `folder`, and what that depends on."""
    texts = asked_texts(samples, setup.tokenizer)
    with progress_of_runs() as progress:
        tune(setup.model, setup.memory, texts, folder, settings=settings, progress=progress)
    model, _ = namm.load_model(folder, device=setup.model.device)
    depends = {"settings": asdict(settings), "learner": model_fingerprint(model)}
    depends |= {"under": setup.memory.fingerprint()} if settings.kept is not None else {}
    return replace(setup, model=model), depends


def ask(
    results: Measurements,
    setup: Setup,
    groups: list[list[Sample]],
    arguments: Any,
    name: str,
    fractions: Sequence[float],
    **who: Any,
) -> None:
    """A row for every answer at every kept fraction; of a context that has been asked about nothing is read again."""
    for number, group in enumerate(track(groups, f"asking ({name})")):
        task = arguments.tasks[number % len(arguments.tasks)]
        what = who | {"task": task, "number": number, "tokens": arguments.tokens}
        context, *_ = group[0].token_ids(setup.tokenizer)
        questions = [sample.asked_ids(setup.tokenizer) for sample in group]
        for kept in fractions:
            policy, engine = ("full", "loops") if kept == 1 else ("namm", arguments.engine)
            asked = _Asked(setup, context[0], kept, engine)
            for question, (words, answer) in enumerate(questions):
                row = partial(asked.answer, words[0], answer[0])
                results.row(row, **what, question=question, policy=policy, engine=engine, aim=kept)


@dataclass
class _Asked:
    """A context that is read once for all questions about it, when the first is asked."""

    setup: Setup
    context: Tensor
    kept: float
    engine: str

    @cached_property
    def reading(self) -> Reading:
        policy, _ = self.setup.policy(*(("full", None) if self.kept == 1 else ("namm", self.kept)))
        return read(self.setup.model, [self.context], policy, engine=self.engine)

    def answer(self, question: Tensor, answer: Tensor) -> Row:
        """Whether it is known, teacher-forced."""
        reading = self.reading.fork()
        found, first_choice = reading.score(question, answer)
        return {
            "log_probability": float(found.mean()),
            "correct": bool(first_choice.all()),
            "seen": len(self.context),
            "kept_fraction": reading.stats.kept_fraction,
        }
