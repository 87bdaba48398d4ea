"""RULER's ``vt``: variables that take their value from one another, hidden in noise."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.ruler_forms import NOISE, Form, Maker, random_names

HOPS = 4
# The solved example: short names, and as much noise as fits 500 tokens in RULER's steps of five lines
_EXAMPLE_LETTERS, _EXAMPLE_LINES = 3, 10
_LETTERS = 5


def variable_maker(request: Request) -> Maker:
    """One chain of four hops, after a solved example; a unit is a line of noise."""

    def make(units: int, rng: random.Random) -> Form:
        example = _chain(_EXAMPLE_LINES, _EXAMPLE_LETTERS, rng)
        asked = _chain(units, _LETTERS, rng)
        solved = f"{example.context}{example.question} {' '.join(example.answers)}\n\n\n\n"
        return Form(solved + asked.context, asked.question, asked.answers)

    return Maker(make, least=HOPS + 2)  # one line more than assignments, which stand before different ones


def _chain(lines: int, letters: int, rng: random.Random) -> Form:
    names = random_names(HOPS + 1, string.ascii_uppercase, letters, rng)
    value = rng.randrange(10_000, 100_000)
    # blanks at the end of hops are RULER's
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {name} = VAR {source} " for source, name in pairwise(names))]
    pieces = [f"{NOISE}\n"] * lines
    for before, (place, assignment) in enumerate(zip(sorted(rng.sample(range(lines), len(chain))), chain, strict=True)):
        pieces.insert(place + before, assignment)
    head = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    asked = (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        f"the chain(s) of variable assignment in the text above, {len(names)} variables are assigned the value {value}, "
        "they are: "
    )
    return Form(head + " ".join(pieces), asked, tuple(names))
