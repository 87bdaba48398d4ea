"""RULER's needles in a haystack: keys with values, hidden in noise, essays or other needles."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from namm.evaluation.benchmarks.base import Request, haystack
from namm.evaluation.benchmarks.ruler_forms import NOISE, Form, Maker
from namm.evaluation.benchmarks.ruler_words import words_of
from namm.tasks.text import sentences_of

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Needles:
    """The parameters of one of RULER's needle tasks.

    Attributes:
        haystack: what the needles hide in.
        keys: what keys are made of.
        values: what values are made of.
        count: keys hidden.
        per_key: values of each key.
        asked: keys that are asked for.
    """

    haystack: Literal["noise", "essay", "needle"]
    keys: Kind
    values: Kind
    count: int = 1
    per_key: int = 1
    asked: int = 1

    def maker(self, request: Request) -> Maker:
        """A unit of haystack is a line of noise, a sentence (all over again after the last) or a needle.

        Raises:
            SkippedTaskError: if there is no prose for keys or haystack.
        """
        words = words_of(request) if "words" in (self.keys, self.values) else []
        sentences = _sentences(request) if self.haystack == "essay" else []
        return Maker(lambda units, rng: self._form(sentences, units, words, rng))

    def _form(self, sentences: Sequence[str], units: int, words: Sequence[str], rng: random.Random) -> Form:
        keys = [_make(self.keys, words, rng) for _ in range(self.count)]
        values = [[_make(self.values, words, rng) for _ in range(self.per_key)] for _ in keys]
        queried = sorted(rng.sample(range(self.count), self.asked))
        needles = [self._line(key, value) for key, own in zip(keys, values, strict=True) for value in own]
        rng.shuffle(needles)
        lines = self._haystack(sentences, units, words, rng)
        for needle in needles:
            lines.insert(rng.randrange(len(lines) + 1), needle)
        head, asked = self._around([keys[i] for i in queried])
        text = (" " if self.haystack == "essay" else "\n").join(lines)
        return Form(head + text, asked, tuple(value for i in queried for value in values[i]))

    def _haystack(self, sentences: Sequence[str], units: int, words: Sequence[str], rng: random.Random) -> list[str]:
        if self.haystack == "noise":
            return [NOISE] * units
        if self.haystack == "essay":
            return list(islice(cycle(sentences), units))
        return [self._line(_make(self.keys, words, rng), _make(self.values, words, rng)) for _ in range(units)]

    def _line(self, key: str, value: str) -> str:
        return f"One of the special magic {self.values} for {key} is: {value}."

    def _around(self, keys: Sequence[str]) -> tuple[str, str]:
        """What comes before the haystack, and the question behind it."""
        query = ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]
        if self.asked * self.per_key > 1:
            some, kind, what, are = "Some", str(self.values), "What are all", "are"
        else:
            some, kind, what, are = "A", self.values.removesuffix("s"), "What is", "is"
        head = (
            f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will quiz "
            f"you about the {kind} afterwards.\n"
        )
        wanted = f"the special magic {kind} for {query} mentioned in the provided text"
        return head, f"\n{what} {wanted}? T{wanted[1:]} {are}"


def _sentences(request: Request) -> list[str]:
    """Sentences of the prose, each in one line."""
    prose = haystack(request, "prose")
    return [" ".join(sentence.split()) for document in prose for sentence in sentences_of(document)]


def _make(kind: Kind, words: Sequence[str], rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randrange(1_000_000, 10_000_000))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return "-".join(rng.sample(words, 2))
