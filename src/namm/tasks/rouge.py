"""ROUGE-L as LongBench counts it; a metric of `namm.tasks.metrics`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from namm.support.extras import need
from namm.tasks.scoring import metric


@metric
def rouge_l(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best ROUGE-L F1 (Lin 2004), sentence by sentence, as the package `rouge` computes it for LongBench.

    Sentences of many hundred words, at which the package runs out of recursion and LongBench counts 0, are scored too.
    """
    scorer = need("rouge", "eval").Rouge(metrics=["rouge-l"])

    def score(answer: str) -> float:
        if not text.replace(".", "").strip() or not answer.replace(".", "").strip():
            return 0.0  # the package refuses texts without a sentence
        with _deeper_recursion(len(text.split()) + len(answer.split())):
            return float(scorer.get_scores(text, answer)[0]["rouge-l"]["f"])

    return max(score(answer) for answer in answers)


@contextmanager
def _deeper_recursion(frames: int) -> Iterator[None]:
    """Room for so many calls more: `rouge` walks back along two sentences with one call a word."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
