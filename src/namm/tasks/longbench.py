"""Samples in the format of LongBench: JSON objects with ``context``, ``input`` (the question) and ``answers``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm.support.extras import need
from namm.tasks.rows import Row, json_lines, text_of, texts_of
from namm.tasks.sample import Sample


@dataclass(frozen=True)
class LongBenchRow:
    """A context, a question about it (may be empty), all accepted answers (at least one), all labels if it has any."""

    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The question in a form that a model completes."""
        return f"\n\n{self.question}\nAnswer:" if self.question else "\n\nIn short:"


def longbench_rows(source: str) -> Iterator[LongBenchRow]:
    """Rows of a local ``.jsonl`` file, or of a Hugging Face dataset: ``hub id``, ``hub id:config`` (split "test").

    Raises:
        ValueError: naming the line and key that is missing, or if there is no row.
        FileNotFoundError: if there is no such file.
        ImportError: for a dataset, where `datasets` is not installed.
    """
    empty = True
    for where, row in json_lines(Path(source)) if source.endswith(".jsonl") else _dataset_rows(source):
        empty = False
        yield _row(where, row)
    if empty:
        raise ValueError(f"{source}: the dataset is empty")


def longbench_samples(source: str) -> list[Sample]:
    """`longbench_rows` as samples, with the first of the answers."""
    return [Sample(row.context, row.asked, " " + row.answers[0].strip()) for row in longbench_rows(source)]


def _row(where: str, row: Mapping[str, Any]) -> LongBenchRow:
    key = next((key for key in ("answers", "answer", "outputs") if row.get(key)), "answers")
    answers = row if isinstance(row.get(key), list | tuple) else {key: [row.get(key)]}
    question = text_of(where, {"input": row.get("input") or ""}, "input").strip()
    context, classes = text_of(where, row, "context"), texts_of(where, row, "all_classes", least=0)
    if not context.strip():
        raise ValueError(f"{where}: the text under 'context' is blank")
    return LongBenchRow(context, question, texts_of(where, answers, key), classes)


def _dataset_rows(source: str) -> Iterator[Row]:
    load_dataset = need("datasets", "eval").load_dataset
    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split="test")
    except Exception as error:  # the hub raises many kinds; the user needs one sentence
        raise ValueError(f"could not load the dataset {source!r}: {error}") from error
    return ((f"{source}[{number}]", row) for number, row in enumerate(rows))
