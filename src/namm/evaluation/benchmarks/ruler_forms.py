"""What RULER's tasks share: a prompt of any size, filled up to a number of tokens."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from namm.evaluation.benchmarks.base import Request, SkippedTaskError
from namm.tasks.text import token_counts

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Form:
    """A prompt in two parts, and its answers."""

    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Maker:
    """Makes prompts of one task.

    Attributes:
        make: a prompt with so many units of haystack; for generators in the same state, a longer one with more.
        least: units that there must be.
        most: units that there are; None: any number.
    """

    make: Callable[[int, random.Random], Form]
    least: int = 1
    most: int | None = None


def fill(maker: Maker, request: Request, new_tokens: int, seed: str) -> Form:
    """The prompt with the most haystack that leaves room for the answer within the request's tokens.

    Raises:
        SkippedTaskError: if not even the shortest prompt fits.
    """
    room = request.tokens - new_tokens

    def tokens(units: int) -> int:
        form = maker.make(units, random.Random(seed))
        return token_counts(request.tokenizer, [form.context + form.question])[0]

    shortest = tokens(maker.least)
    if shortest > room:
        raise SkippedTaskError(
            f"its shortest prompt has {shortest} tokens and its answer {new_tokens}, together more than --tokens {request.tokens}"
        )
    most = request.tokens if maker.most is None else maker.most  # no unit is shorter than a token
    end = maker.least
    while end < most and tokens(end) <= room:  # doubled, so that no prompt much too long has to be counted
        end = min(2 * end, most)
    units = bisect_right(range(end + 1), room, lo=maker.least + 1, key=tokens) - 1
    return maker.make(units, random.Random(seed))


def random_names(count: int, letters: str, length: int, rng: random.Random) -> list[str]:
    """So many different strings of so many of the letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(letters, k=length))] = None
    return list(found)
