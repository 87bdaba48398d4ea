"""What metrics share: their form, what no metric counts as an answer, normal forms of texts, overlap."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import wraps
from typing import Protocol

# the full-width and typographic marks that LongBench and InfiniteBench take out of Chinese answers
_CHINESE_MARKS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: E501


class Metric(Protocol):
    """A generated text, the accepted answers and all labels in, a number from 0 to 1 out."""

    def __call__(self, text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float: ...


def metric(score: Metric) -> Metric:
    """The metric without answers of nothing but blanks: every text would contain or begin with them.

    Where no answer is left, nothing is right.
    """

    @wraps(score)
    def of_answers(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
        given = [answer for answer in answers if answer.strip()]
        return score(text, given, classes) if given else 0.0

    return of_answers


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and surplus blanks (SQuAD, Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def chinese_letters(text: str) -> str:
    """Lower case without Western and Chinese marks, and without blanks."""
    marks = set(string.punctuation + _CHINESE_MARKS)
    return "".join("".join(character for character in text.lower() if character not in marks).split())


def f1(found: Sequence[str], expected: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words (or characters)."""
    common = sum((Counter(found) & Counter(expected)).values())
    return 2 * common / (len(found) + len(expected)) if common else 0.0
