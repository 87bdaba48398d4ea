"""RULER's lists of words: ``cwe``, the words of which there are most, and ``fwe``, the most frequent of coded ones."""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from namm.evaluation.benchmarks.base import Request, SkippedTaskError, haystack
from namm.evaluation.benchmarks.ruler_forms import Form, Maker, random_names

COMMON = 10  # words asked for
EXPONENT = 2.0  # of the coded words' frequencies
_TOKENS_PER_CODED_WORD = 50  # of the prompt, for each different one
_LONG = 4096  # tokens from which on words are repeated more often


@dataclass(frozen=True)
class _Copies:
    """How often the words asked for and the others come in a list."""

    common: int
    others: int


def words_of(request: Request) -> list[str]:
    """Different words of four to ten letters in the prose, sorted.

    Raises:
        SkippedTaskError: if there are fewer than a hundred.
    """
    prose = " ".join(document.text for document in haystack(request, "prose"))
    words = sorted(set(re.findall(r"\b[a-z]{4,10}\b", prose)))
    if len(words) < 100:
        raise SkippedTaskError(f"it takes its words from prose, and the texts have only {len(words)} of them")
    return words


def common_maker(request: Request) -> Maker:
    """Ten words that come often among others that come seldom, after a solved example; a unit is one other word."""
    words = words_of(request)
    copies, shown = (_Copies(30, 3), _Copies(10, 3)) if request.tokens >= _LONG else (_Copies(6, 1), _Copies(3, 1))
    shown_others = 30 if request.tokens >= _LONG else 10

    def make(units: int, rng: random.Random) -> Form:
        example = _list(words, shown_others, shown, rng)
        asked = _list(words, units, copies, rng)
        solved = f"{example.context}{example.question} {_numbered(example.answers)}\n"
        return Form(solved + asked.context, asked.question, asked.answers)

    return Maker(make)


def _list(words: Sequence[str], others: int, copies: _Copies, rng: random.Random) -> Form:
    chosen = _different(words, COMMON + others, rng)
    listed = chosen[:COMMON] * copies.common + chosen[COMMON:] * copies.others
    rng.shuffle(listed)
    head = (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n"
    )
    asked = (
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most "
        "often in the list are:"
    )
    return Form(head + _numbered(listed), asked, tuple(chosen[:COMMON]))


def _different(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """So many different words; where there are too few, as RULER does, pairs of them."""
    if count <= len(words):
        return rng.sample(words, count)
    pairs = (divmod(number, len(words)) for number in rng.sample(range(len(words) ** 2), count))
    return [f"{words[first]}-{words[second]}" for first, second in pairs]


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def frequent_maker(request: Request) -> Maker:
    """Coded words whose frequencies follow a zeta distribution; a unit is one of its draws.

    The most frequent is dots, to be ignored; the three behind it are asked for.
    """

    def make(units: int, rng: random.Random) -> Form:
        coded = random_names(request.tokens // _TOKENS_PER_CODED_WORD, string.ascii_lowercase, 6, rng)
        ranked = ["...", *coded[1:]]
        listed = [word for rank, word in enumerate(ranked, 1) for _ in range(int(units * _share(rank)))]
        rng.shuffle(listed)
        head = (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words. "
        )
        asked = (
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
            "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
            "appeared words are:"
        )
        return Form(head + " ".join(listed), asked, tuple(ranked[1:4]))

    # from so many draws on, whole numbers of the fourth word and the fifth are never the same
    return Maker(make, least=math.ceil(1 / (_share(4) - _share(5))))


def _share(rank: int) -> float:
    """Of all draws, those of the rank-th most frequent word, where there is no end of words."""
    return rank**-EXPONENT / (math.pi**2 / 6)  # zeta(2)
