"""RULER's ``qa_1`` and ``qa_2``: questions of SQuAD and HotpotQA, whose documents stand among many others."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm.evaluation.benchmarks.ruler_forms import Form, Maker
from namm.tasks.rows import read_utf8

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)

# which published file is saved under a name, as RULER does
PUBLISHED: Mapping[str, str] = {
    "squad.json": "SQuAD's dev-v2.0.json",
    "hotpotqa.json": "HotpotQA's hotpot_dev_distractor_v1.json",
}


@dataclass(frozen=True)
class Asked:
    """A question about some documents.

    Attributes:
        question: as published.
        answers: likewise.
        documents: numbers of those that it is about.
        near: numbers of those on the same subject, which are added before any others.
    """

    question: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class Library:
    """Documents without duplicates, and all questions about them in the order of their file."""

    documents: tuple[str, ...]
    asked: tuple[Asked, ...]

    def maker(self, asked: Asked) -> Maker:
        """A unit is a document; those with the answer are always there, and where they stand is random."""

        def make(units: int, rng: random.Random) -> Form:
            chosen = [self.documents[number] for number in self._choose(asked, units, rng)]
            rng.shuffle(chosen)
            listed = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(chosen, 1))
            context = f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{listed}"
            return Form(context, f"\n\n{_INSTRUCTION}\n\nQuestion: {asked.question} Answer:", asked.answers)

        return Maker(make, len(asked.documents), len(self.documents))

    def _choose(self, asked: Asked, units: int, rng: random.Random) -> list[int]:
        more = units - len(asked.documents)
        if more <= len(asked.near):
            return [*asked.documents, *rng.sample(asked.near, more)]
        known = {*asked.documents, *asked.near}
        drawn = rng.sample(range(len(self.documents)), min(units + len(known), len(self.documents)))
        others = [number for number in drawn if number not in known]
        return [*asked.documents, *asked.near, *others[: more - len(asked.near)]]


def read_library(data: Path, name: str) -> Library | None:
    """The library in ``squad.json`` or ``hotpotqa.json`` in the folder or below it; None if there is none.

    Raises:
        ValueError: if the file is not in the published format, or has no question.
    """
    for path in sorted(data.rglob(name)):
        try:
            library = _READERS[name](json.loads(read_utf8(path)))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not in the format of {PUBLISHED[name]} ({error!r})") from error
        if not library.asked:
            raise ValueError(f"{path}: the file has no question that can be answered")
        return library
    return None


def _squad(content: Any) -> Library:
    articles = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in content["data"]]
    numbers = _numbered([text for article in articles for text in article])
    asked = []
    for article, texts in zip(content["data"], articles, strict=True):
        all_of_it = list(dict.fromkeys(numbers[text] for text in texts))
        for paragraph in article["paragraphs"]:
            own = numbers[paragraph["context"]]
            near = tuple(number for number in all_of_it if number != own)
            for row in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in row["answers"]))
                if any(answer.strip() for answer in answers):  # some are asked because nothing answers them
                    asked.append(Asked(row["question"], answers, (own,), near))
    return Library(tuple(numbers), tuple(asked))


def _hotpotqa(content: Any) -> Library:
    contexts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in content]
    numbers = _numbered([text for texts in contexts for text in texts])
    asked = [
        Asked(row["question"], (row["answer"],), tuple(dict.fromkeys(numbers[text] for text in texts)))
        for row, texts in zip(content, contexts, strict=True)
    ]
    return Library(tuple(numbers), tuple(asked))


def _numbered(texts: list[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(sorted(set(texts)))}


_READERS: Mapping[str, Callable[[Any], Library]] = {"squad.json": _squad, "hotpotqa.json": _hotpotqa}
