"""What a benchmark hands the runner: questions, and how their answers are scored."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from namm.tasks.documents import Document, Kind
from namm.tasks.rows import Row, json_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SkippedTaskError(Exception):
    """A task can't be had from what there is, while others may; the message is one line that says what is missing."""


@dataclass(frozen=True)
class Question:
    """One prompt of a benchmark.

    Attributes:
        name: unique within its task.
        context: the prompt's beginning up to and including the long text; what a memory compresses.
        question: the rest of the prompt, as published; may be empty.
        answers: the accepted answers, at least one that is not blank.
        classes: all labels, where the metric is classification.
        place: where it belongs in a grid (depth, length), for plots.
    """

    name: str
    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()
    place: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(answer.strip() for answer in self.answers):
            raise ValueError(f"question {self.name!r} has no answer that is not blank")


@dataclass(frozen=True)
class Request:
    """What questions are made from.

    Attributes:
        tokenizer: counts the tokens of what is generated.
        data: folder with the benchmark's files, else they come from the Hugging Face hub.
        text: haystack of generated tasks.
        tokens: of generated prompts, context and question.
        samples: of each task; None: all there are (of generated ones 3).
        seed: of everything random.
    """

    tokenizer: PreTrainedTokenizerBase
    data: Path | None = None
    text: tuple[Document, ...] = ()
    tokens: int = 4096
    samples: int | None = None
    seed: int = 0

    @property
    def generated(self) -> int:
        """Samples of a generated task."""
        return 3 if self.samples is None else self.samples


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: ``benchmark/task``.
        metric: of `namm.evaluation.benchmarks.metrics.METRICS`, or `LIKELIHOOD`.
        new_tokens: at most so many are generated.
        questions: makes them, at most ``request.samples``; raises `SkippedTaskError`, or ValueError naming file,
            line and key of what is wrong.
        stop: the answer ends before the first of these.
        goes_on: the answer goes on with the prompt's own text, examples or code, so that no chat template serves it.
    """

    name: str
    metric: str
    new_tokens: int
    questions: Callable[[Request], Iterable[Question]]
    stop: tuple[str, ...] = ()
    goes_on: bool = False


def local_rows(data: Path, names: Iterable[str]) -> Iterator[Row] | None:
    """Rows of the first file in `data` (or below it) that bears one of the names; None if there is none.

    Raises:
        ValueError: for an empty file or a line that is no JSON object.
    """
    for name in names:
        for path in sorted(data.rglob(name)):
            return rows_of(path)
    return None


def rows_of(path: Path | zipfile.Path) -> Iterator[Row]:
    """Rows of one file; ValueError as for `local_rows`."""
    found = False
    for row in json_lines(path):
        found = True
        yield row
    if not found:
        raise ValueError(f"{path}: the file is empty")


def haystack(request: Request, kind: Kind) -> list[Document]:
    """The request's texts of that kind; SkippedTaskError if there is none."""
    found = [document for document in request.text if document.kind == kind]
    if not found:
        raise SkippedTaskError(f"it is made from {kind}, and there is none among the texts")
    return found
