"""Metrics of generated answers: the general ones, LongBench's and RULER's, whose files the tasks read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from namm.support.extras import need
from namm.tasks.rouge import rouge_l
from namm.tasks.scoring import Metric, chinese_letters, f1, metric, normalise

LIKELIHOOD = "likelihood"  # no metric of a text: how likely the reference is, as exp(mean log-probability)


@metric
def exact(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text begins with an answer that goes on with no further letter or digit.

    Texts in scripts without blanks between words are not for it, as a letter follows there wherever a text goes on.

    >>> exact("4711. And so on", ["4711"])
    1.0
    >>> exact("47110", ["4711"])
    0.0
    """
    text, wanted = text.strip(), [answer.strip() for answer in answers]
    return float(any(text.startswith(answer) and not text[len(answer) :][:1].isalnum() for answer in wanted))


@metric
def token_f1(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best harmonic mean of precision and recall in words (SQuAD; LongBench's question answering).

    >>> token_f1("the red house", ["a red car"])
    0.5
    """
    return max(f1(normalise(text).split(), normalise(answer).split()) for answer in answers)


@metric
def token_f1_zh(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """`token_f1` for Chinese: words as jieba cuts them, without marks and blanks."""
    return max(f1(_chinese_words(text), _chinese_words(answer)) for answer in answers)


def _chinese_words(text: str) -> list[str]:
    return [word for word in map(chinese_letters, _cut(text)) if word]


@metric
def rouge_l_zh(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """`rouge_l` of Chinese words as jieba cuts them."""
    return rouge_l(" ".join(_cut(text)), [" ".join(_cut(answer)) for answer in answers])


@metric
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


def share_of_numbers(before: str = "") -> Metric:
    """The share of the text's numbers that are the right one (LongBench's counting and retrieval).

    Args:
        before: the number stands behind this word in the answer.

    >>> share_of_numbers("Paragraph ")("Paragraph 7, or 8", ["Paragraph 7"])
    0.5
    """

    @metric
    def share(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
        numbers, wanted = re.findall(r"\d+", text), []
        for answer in answers:
            found = re.search(rf"{before}(\d+)", answer)
            if not found:
                raise ValueError(f"the answer {answer!r} has no number{f' after {before!r}' if before else ''}")
            wanted.append(found[1])
        return max(numbers.count(number) for number in wanted) / len(numbers) if numbers else 0.0

    return share


@metric
def code_similarity(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is neither comment nor fence with the line expected (LongBench).

    >>> code_similarity("# next\\nreturn x", ["return x"])
    1.0
    """
    ratio = need("rapidfuzz.fuzz", "eval").ratio
    lines = text.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(round(ratio(line, answer)) / 100 for answer in answers)  # as fuzzywuzzy, in whole percent


@metric
def all_of(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The share of the answers that the text contains, in any case (RULER's string_match_all).

    The published rule: an answer within a longer word or number counts.

    >>> all_of("Alpha and beta", ["alpha", "gamma"])
    0.5
    """
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


@metric
def any_of(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text contains one of the answers, in any case (RULER's string_match_part).

    The published rule: an answer within a longer word or number counts.

    >>> any_of("It was Alpha.", ["alpha", "gamma"])
    1.0
    """
    return float(any(answer.lower() in text.lower() for answer in answers))


def _cut(text: str) -> list[str]:
    jieba = need("jieba", "eval")
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text))


METRICS: Mapping[str, Metric] = {
    "exact": exact,
    "f1": token_f1,
    "f1_zh": token_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "count": share_of_numbers(),
    "retrieval": share_of_numbers("Paragraph "),
    "retrieval_zh": share_of_numbers("段落"),
    "code_similarity": code_similarity,
    "all_of": all_of,
    "any_of": any_of,
}


def check_metric(name: str, known: Mapping[str, Metric] = METRICS) -> None:
    """Raises what would stop this metric later: ValueError if it is not known, ImportError for a missing package."""
    if name == LIKELIHOOD:
        return
    if name not in known:
        raise ValueError(f"unknown metric {name!r}; there are {', '.join((LIKELIHOOD, *known))}")
    known[name]("", ["Paragraph 0, 段落0"])  # every metric looks for its packages first
