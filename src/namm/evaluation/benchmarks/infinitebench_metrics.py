"""InfiniteBench's own metrics, with the signature of `namm.tasks.scoring.Metric`.

They score as its ``compute_scores.py`` does on the main branch, which accepts more forms of a choice than the paper's
(arXiv 2402.13718). Where that stops with an error (a decimal where an integer is expected) the score is 0, unless the
number is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from namm.support.extras import need
from namm.tasks.scoring import chinese_letters, f1, metric

_MARKS = "\n:\"'.,?!{}"


def _words(text: str, marks: str = _MARKS) -> list[str]:
    return text.translate(str.maketrans(marks, " " * len(marks))).split()


@metric
def first_integer(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the first run of digits is the answer.

    >>> first_integer("It is 71432, not 5.", ["71432"])
    1.0
    """
    found = re.search(r"[0-9]+", text)
    return float(bool(found) and found[0] in answers)  # type: ignore[index]


@metric
def first_number(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the first number, decimals included, has the answer's value."""
    found = re.search(r"\d+\.\d+|\d+", text)
    return float(found is not None and any(float(found[0]) == float(answer) for answer in answers))


@metric
def last_integer(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the last word is the answer as an integer."""
    words = _words(text, "\n.`'\":")
    return float(bool(words) and bool(re.fullmatch(r"[+-]?\d+", words[-1])) and str(int(words[-1])) in answers)


@metric
def word(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if an answer is one of the words.

    >>> word('"a1b2": found', ["a1b2"])
    1.0
    """
    return float(any(answer in _words(text) for answer in answers))


@metric
def first_values(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """How many of the values are right before the first that is wrong, as a share of all.

    >>> first_values("[1, 4, 7, 2]", ["1", "4", "8", "2"])
    0.5
    """
    right = 0
    for found, expected in zip(re.findall(r"[0-9]+", text), answers, strict=False):
        if int(found) != int(expected):
            break
        right += 1
    return right / len(answers)


@metric
def choice(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text chooses an answer: the letter of the right option, or the option itself.

    A right letter alone at the end of a line is enough; else the text must begin with it, or be an answer, or have one
    after "answer is" and the like, or the first of its words that is a letter must be right.

    >>> choice("I think that the answer is: Ann", ["B", "Ann"])
    1.0
    """
    text = text.strip()
    if _last_letter(text, "A-D") in answers:
        return 1.0
    if not text or text[0] in "ABCD":
        return float(text[:1] in answers)
    if text in answers:
        return 1.0
    plain = _joined(text, r"[\n\"'.,?!{}]")
    after = _after(plain, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(after.startswith(tuple(answers)))
    return float(next((each for each in plain.split() if each in "ABCD"), "") in answers)


@metric
def option(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text names a function by the letter ``answers[0]`` or by its name ``answers[1]``.

    A right letter alone at the end of a line is enough; else the text must begin with an answer or have one after "is:"
    or "answer:".

    >>> option("The faulty one is: f.b", ["B", "f.b"])
    1.0
    """
    text = text.strip()
    if _last_letter(text, "A-J") == answers[0]:
        return 1.0
    plain = _joined(text, r"[\n`'\"*-]|[Oo]ption")
    after = _after(plain, ("answer is:", "is:", "answer:"))
    return float(plain.startswith(tuple(answers)) or (after or "").startswith(tuple(answers)))


def _last_letter(text: str, letters: str) -> str | None:
    """The last letter alone of the first line that has one."""
    found = re.search(rf"\b[{letters}]\b(?!.*\b[{letters}]\b)", text)
    return found and found[0]


def _joined(text: str, marks: str) -> str:
    return re.sub(" {2,}", " ", re.sub(marks, " ", text))


def _after(text: str, phrases: Sequence[str]) -> str | None:
    """What follows the first of the phrases that the text has, and one character; None if it has none."""
    for phrase in phrases:
        at = text.find(phrase)
        if at >= 0:
            return text[at + len(phrase) + 1 :]
    return None


@metric
def f1_characters(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best F1 over Chinese characters, marks and blanks left out."""
    return max(f1(chinese_letters(text), chinese_letters(answer)) for answer in answers)


@metric
def rouge_lsum(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Best ROUGE-Lsum F1 of the package `rouge-score`, lines as sentences."""
    scorer = need("rouge_score.rouge_scorer", "eval").RougeScorer(["rougeLsum"])
    return max(float(scorer.score(answer, text)["rougeLsum"].fmeasure) for answer in answers)


INFINITEBENCH_METRICS = {
    "first_integer": first_integer,
    "first_number": first_number,
    "last_integer": last_integer,
    "word": word,
    "first_values": first_values,
    "choice": choice,
    "option": option,
    "f1_characters": f1_characters,
    "rouge_lsum": rouge_lsum,
}
