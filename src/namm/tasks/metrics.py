"""Metrics of generated answers: a text, the accepted answers and all labels in, a number from 0 to 1 out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from namm.tasks.choubun_metrics import CHOUBUN_METRICS
from namm.tasks.infinitebench_metrics import INFINITEBENCH_METRICS
from namm.tasks.leval_metrics import LEVAL_METRICS
from namm.tasks.normal_forms import chinese_letters, f1, need, normalise
from namm.tasks.rouge import rouge_l

LIKELIHOOD = "likelihood"  # no metric of a text: how likely the reference is, as exp(mean log-probability)
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


def exact(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text begins with an answer.

    >>> exact("4711. And so on", ["4711"])
    1.0
    """
    return float(any(text.strip().startswith(answer.strip()) for answer in answers))


def token_f1(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best harmonic mean of precision and recall in words (SQuAD; LongBench's question answering).

    >>> token_f1("the red house", ["a red car"])
    0.5
    """
    return max(f1(normalise(text).split(), normalise(answer).split()) for answer in answers)


def token_f1_zh(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """`token_f1` for Chinese: words as jieba cuts them, without marks and blanks."""
    return max(f1(_chinese_words(text), _chinese_words(answer)) for answer in answers)


def _chinese_words(text: str) -> list[str]:
    return [word for word in map(chinese_letters, _cut(text)) if word]


def rouge_l_zh(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """`rouge_l` of Chinese words as jieba cuts them."""
    return rouge_l(" ".join(_cut(text)), [" ".join(_cut(answer)) for answer in answers])


def classification(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1 over the number of labels named in the text, if the right one is among them (LongBench).

    A label that is part of the right one (and so named along with it) does not count. LongBench's own loop means this
    too, but passes over one of two such labels in a row.

    >>> classification("Type: city or state", ["city"], ["city", "state", "river"])
    0.5
    """

    def score(answer: str) -> float:
        named = [label for label in classes if label in text and (label == answer or label not in answer)]
        return 1 / len(named) if answer in named else 0.0

    return max(score(answer) for answer in answers)


def share_of_numbers(text: str, answers: Sequence[str], classes: Sequence[str] = (), *, before: str = "") -> float:
    """The share of the text's numbers that are the right one (LongBench's counting and retrieval).

    Args:
        before: the number stands behind this word in the answer.

    >>> share_of_numbers("Paragraph 7, or 8", ["Paragraph 7"], before="Paragraph ")
    0.5
    """
    numbers = re.findall(r"\d+", text)

    def score(answer: str) -> float:
        match = re.search(rf"{before}(\d+)", answer)
        if not match:
            raise ValueError(
                f"the answer {answer!r} has no number after {before!r}" if before else f"{answer!r}: no number"
            )
        return numbers.count(match.group(1)) / len(numbers) if numbers else 0.0

    return max(score(answer) for answer in answers)


def code_similarity(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is neither comment nor fence with the line expected (LongBench).

    >>> code_similarity("# next\\nreturn x", ["return x"])
    1.0
    """
    ratio = need("rapidfuzz.fuzz").ratio
    lines = text.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(round(ratio(line, answer)) / 100 for answer in answers)  # as fuzzywuzzy, in whole percent


def all_of(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The share of the answers that the text contains, in any case (RULER's string_match_all).

    >>> all_of("Alpha and beta", ["alpha", "gamma"])
    0.5
    """
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def any_of(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text contains one of the answers, in any case (RULER's string_match_part).

    >>> any_of("It was Alpha.", ["alpha", "gamma"])
    1.0
    """
    return float(any(answer.lower() in text.lower() for answer in answers))


def _cut(text: str) -> list[str]:
    jieba = need("jieba")
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text))


METRICS: Mapping[str, Metric] = {
    "exact": exact,
    "f1": token_f1,
    "f1_zh": token_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "count": share_of_numbers,
    "retrieval": partial(share_of_numbers, before="Paragraph "),
    "retrieval_zh": partial(share_of_numbers, before="段落"),
    "code_similarity": code_similarity,
    "all_of": all_of,
    "any_of": any_of,
    **CHOUBUN_METRICS,
    **INFINITEBENCH_METRICS,
    **LEVAL_METRICS,
}
