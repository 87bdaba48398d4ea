"""ChouBun's metrics for Japanese (arXiv 2410.13166), with the signature of `namm.tasks.scoring.Metric`.

LongBench's for Chinese, but with words as MeCab cuts them (the package fugashi). Formulas and normalisation are exactly
those published. Which dictionary MeCab had was not published, and another one (unidic-lite or unidic) may cut words
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from namm.support.extras import need
from namm.tasks.rouge import rouge_l
from namm.tasks.scoring import chinese_letters, f1, metric


@metric
def token_f1_ja(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best F1 in words, without marks and blanks."""
    return max(f1(_letters(text), _letters(answer)) for answer in answers)


@metric
def rouge_l_ja(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best ROUGE-L F1 in words, marks included."""
    return rouge_l(" ".join(_words(text)), [" ".join(_words(answer)) for answer in answers])


def _letters(text: str) -> list[str]:
    return [letters for letters in map(chinese_letters, _words(text)) if letters]


def _words(text: str) -> list[str]:
    return [word.surface for word in _tagger()(text)]


@cache  # it loads a dictionary
def _tagger() -> Any:
    tagger = need("fugashi", "eval").Tagger
    try:
        return tagger("-Owakati")
    except RuntimeError as error:
        raise ImportError("this metric needs a dictionary for fugashi: pip install unidic-lite") from error


CHOUBUN_METRICS = {"f1_ja": token_f1_ja, "rouge_l_ja": rouge_l_ja}
