"""L-Eval's own metrics of closed questions, with the signature of `namm.tasks.scoring.Metric`.

They score as its ``auto_eval.py`` and ``em.py`` do (arXiv 2307.11088), but for an empty text, which earns nothing here
and a quarter of a choice there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from namm.tasks.scoring import metric

_OPTIONS = "ABCD"
_GUESS = "A"  # what a text without any option is taken for
_SURPLUS = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")  # in this order
_SPARE_WORDS = 3  # so many more than the answer has are looked at


@metric
def first_line(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the text is the answer's number, or its first line of two or more letters contains an answer.

    Case and blanks don't count.

    >>> first_line("The topic was Deep Sea.", ["the deepsea", "deep sea"])
    1.0
    """
    return float(any(_same(text, answer) for answer in answers))


@metric
def letter(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the first letter from A to D is the right one; no such letter is taken for an A.

    >>> letter("I choose (B), not C", ["(B) They left."])
    1.0
    """
    text = text.strip()
    if text in _OPTIONS:
        return _choice(text, answers)
    return _choice(next((character for character in text if character in _OPTIONS), _GUESS), answers)


@metric
def letters(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if exactly the right letters are chosen, 0.25 if some of them and no wrong ones; none is taken for an A.

    Letters count at the text's beginning, and before a blank, a full stop or a bracket up to the next "Question".

    >>> letters("A. Red" + chr(10) + "C. Blue", ["ACD"])
    0.25
    """
    text = text.strip()
    begin = text[: len(text) - len(text.lstrip(_OPTIONS))]
    more = "" if len(begin) > 1 else "".join(re.findall(r"[A-Z](?=[\s.)])", text[len(begin) :].split("Question")[0]))
    found = "".join(option for option in _OPTIONS if option in begin + more)
    return _choice(found or (text and _GUESS), answers)


@metric
def solution(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the integer after "The answer is", else the last one of the first paragraph, is right.

    >>> solution("12 + 6 = $18.00 in all", ["So it is 18." + chr(10) + "The answer is 18"])
    1.0
    """
    found, right = _integer(text), [_integer(answer) for answer in answers]
    return float(any(bool(found and number) and int(found) == int(number) for number in right))


@metric
def printed(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if what a program prints stands behind "the final output", or at the end where that isn't said.

    Commas, quotes and the blanks between brackets don't count.

    >>> printed("So the final output of the code is: [6, 15]", ["[6 15]"])
    1.0
    """

    def right(answer: str) -> bool:
        size = len(answer.split()) + _SPARE_WORDS
        plain = _plain_values(text)
        for words in _SURPLUS:
            plain = plain.replace(words, "")
        _, said, behind = plain.rpartition("the final output")
        words_of = re.split(r"\s+", behind)
        return _same(" ".join(words_of[:size] if said else words_of[-size:]), _plain_values(answer))

    return float(any(right(answer) for answer in answers))


@metric
def truth(text: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1.0 if the first word with "true" or "false" in it is the answer (what stands before its "[fact:").

    >>> truth("That is False, although true on Earth", ["False [fact: True]"])
    1.0
    """
    said = next((word for word in text.lower().split() if "true" in word or "false" in word), None)
    if said is None:
        return 0.0
    found = "true" if "true" in said else "false"
    return float(any(found == answer.lower().split("[fact:")[0].strip() for answer in answers))


def _same(text: str, answer: str) -> bool:
    try:
        return float(text) == float(answer)
    except ValueError:
        line = next((line for line in text.split("\n") if len(line) > 1), text)
        wanted = answer.lower().replace(" ", "")
        return bool(wanted) and wanted in line.lower().replace(" ", "")


def _choice(found: str, answers: Sequence[str]) -> float:
    """Share of a choice that letters earn; the right ones begin an answer: ``AC`` or ``(A) Some text``."""

    def score(answer: str) -> float:
        right = re.sub(f"[^{_OPTIONS}]", "", next(iter(answer.split()), "")) or _GUESS
        return 1.0 if found == right else 0.25 * (bool(found) and set(found) <= set(right))

    return max(score(answer) for answer in answers)


def _integer(text: str) -> str:
    match = re.search(r"The answer is (\S+)", text)
    words = text.split("\n\n")[0].split(" ")
    word = match[1] if match else next((word for word in reversed(words) if re.search(r"\d", word)), "")
    return re.sub(r"\D", "", word.split(".")[0])


def _plain_values(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for mark in (",", "'", "\\", ".0"):
        text = text.replace(mark, "")
    for brackets in ("][", "[[", "]]"):
        text = text.replace(" ".join(brackets), brackets)
    return text


LEVAL_METRICS = {
    "first_line": first_line,
    "letter": letter,
    "letters": letters,
    "solution": solution,
    "printed": printed,
    "truth": truth,
}
