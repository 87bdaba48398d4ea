"""A file of one's own in the format of LongBench as a task."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from namm.evaluation.benchmarks.base import Question, Request, Task
from namm.support.extras import require
from namm.tasks.longbench import longbench_rows

NEW_TOKENS = 64


def file_task(source: str, metric: str) -> Task:
    """``context``, ``input`` and ``answers`` of a .jsonl file or a dataset of the hub (see `longbench_rows`)."""
    if not source.endswith(".jsonl"):
        require(["datasets"], "eval")

    def questions(request: Request) -> Iterator[Question]:
        for number, row in enumerate(islice(longbench_rows(source), request.samples)):
            yield Question(str(number), row.context, row.asked, row.answers, row.classes)

    return Task(Path(source).stem if source.endswith(".jsonl") else source, metric, NEW_TOKENS, questions)
