"""This library's own generators as a benchmark: recall and continuation, scored by the reference's likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from namm.evaluation.benchmarks.base import Question, Request, Task, haystack
from namm.tasks.metrics import LIKELIHOOD
from namm.tasks.registry import GENERATORS


def _task(name: str) -> Task:
    def questions(request: Request) -> Iterator[Question]:
        texts = haystack(request, "code" if name == "repeated_code" else "prose")
        for index in range(request.generated):
            seed = request.seed + index
            sample = GENERATORS[name](texts, request.tokenizer, tokens=request.tokens, seed=seed)
            yield Question(f"{request.tokens}/{seed}", sample.context, sample.question, (sample.answer,))

    return Task(name, LIKELIHOOD, 0, questions, goes_on=True)


GENERATED: Mapping[str, Task] = {name: _task(name) for name in GENERATORS}
