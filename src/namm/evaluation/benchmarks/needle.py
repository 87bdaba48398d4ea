"""Needle in a haystack: a pass key at several depths of texts of several lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from namm.evaluation.benchmarks.base import Question, Request, Task, haystack
from namm.tasks.passkey import pass_key

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (4, 2, 1)  # the request's tokens over these


def _questions(request: Request) -> Iterator[Question]:
    prose = haystack(request, "prose")
    for part in LENGTHS:
        length = request.tokens // part
        for depth in DEPTHS:
            for seed in range(request.seed, request.seed + request.generated):
                sample = pass_key(prose, request.tokenizer, tokens=length, seed=seed, depth=depth)
                place = {"depth": depth, "length": float(length)}
                yield Question(f"{length}/{depth}/{seed}", sample.context, sample.question, (sample.answer,), (), place)


NEEDLE: Mapping[str, Task] = {"needle": Task("needle", "exact", 8, _questions, goes_on=True)}
