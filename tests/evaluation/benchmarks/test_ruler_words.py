from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from namm.evaluation.benchmarks.base import Request, SkippedTaskError
from namm.evaluation.benchmarks.ruler import RULER
from namm.evaluation.benchmarks.ruler_words import frequent_maker
from namm.tasks import Document, packaged_prose

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@pytest.fixture
def request_(characters) -> Request:
    return Request(characters, text=tuple(packaged_prose("heldout")), tokens=3000, samples=2, seed=3)


def test_variables_are_tracked_as_published(request_) -> None:
    """Noise in lines, at most one assignment before each, an example with shorter names solved first."""
    line = rf"(?:(?:VAR [A-Z]+ = (?:\d{{5}}|VAR [A-Z]+ ) )?{re.escape(NOISE)}\n ?)"
    form = (
        "Memorize and track the chain\\(s\\) of variable assignment hidden in the following text\\.\n\n"
        rf"(?P<text>{line}+)\nQuestion: Find all variables that are assigned the value (?P<value>\d{{5}}) in the text "
        r"above\. Answer: According to the chain\(s\) of variable assignment in the text above, 5 variables are "
        r"assigned the value (?P=value), they are: "
    )
    named = re.sub(r"\?P<(\w+)>", r"?P<\1_2>", form).replace("(?P=value)", "(?P=value_2)")
    for question in RULER["ruler/vt"].questions(request_):
        match = re.fullmatch(rf"{form} (?P<solved>[A-Z ]+)\n\n\n\n{named}", question.context + question.question)
        assert match
        chains = ((match["text"], match["value"], 3), (match["text_2"], match["value_2"], 5))
        solutions = (tuple(match["solved"].split(" ")), question.answers)
        for (text, value, letters), names in zip(chains, solutions, strict=True):
            assert {len(name) for name in names} == {letters} and len(set(names)) == 5
            steps = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text)
            assert steps == [(names[0], value), *((b, a) for a, b in pairwise(names))]


@pytest.mark.parametrize(("tokens", "often", "seldom", "shown"), [(3000, 6, 1, (3, 1, 10)), (9000, 30, 3, (10, 3, 30))])
def test_common_words_come_as_often_as_published(request_, tokens, often, seldom, shown) -> None:
    head = (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n"
    )
    asks = (
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most "
        "often in the list are:"
    )
    (question,) = RULER["ruler/cwe"].questions(replace(request_, tokens=tokens, samples=1))
    assert question.question == asks
    empty, example, asked = question.context.split(head)
    example, solved = example.split(asks)
    for text, answers, common, others in (
        (example, re.findall(r"\d+\. (\w+)", solved), shown[0], shown[1]),
        (asked, question.answers, often, seldom),
    ):
        numbers, words = zip(*re.findall(r"(\d+)\. (\w+)", text), strict=True)
        assert not empty and numbers == tuple(str(n) for n in range(1, len(words) + 1))
        counts = Counter(words)
        assert len(answers) == 10 and {counts.pop(word) for word in answers} == {common}
        assert set(counts.values()) == {others}
        if text is example:
            assert len(counts) == shown[2] and solved.startswith(" 1. ") and solved.endswith("\n")


def test_words_are_paired_where_there_are_too_few(request_) -> None:
    words = [a + b + c for a in "abcdef" for b in "aeiou" for c in ("nt", "st", "rd", "mp")]
    few = replace(request_, text=(Document("words", " ".join(words), "prose"),), samples=1)
    (question,) = RULER["ruler/cwe"].questions(replace(few, tokens=4000))
    assert all(re.fullmatch(r"[a-z]{4}-[a-z]{4}", answer) for answer in question.answers)
    with pytest.raises(SkippedTaskError, match="only 1 of them"):
        list(RULER["ruler/cwe"].questions(replace(few, text=(Document("one", "word " * 200, "prose"),))))


def test_coded_words_are_as_frequent_as_a_zeta_distribution_has_them(request_) -> None:
    for question in RULER["ruler/fwe"].questions(request_):
        words = question.context.split("Find the three most frequently appeared coded words. ")[1].split(" ")
        ranked = Counter(words).most_common()
        assert ranked[0][0] == "..." and tuple(word for word, _ in ranked[1:4]) == question.answers
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in ranked[1:])
        assert question.question.endswith("the three most frequently appeared words are:")
    counts = [
        count for _, count in Counter(frequent_maker(request_).make(1000, random.Random(1)).context.split()).items()
    ]
    # 1000 / zeta(2) = 607.927, over 1, 4, 9, 16, 25: without fractions
    assert {607, 151, 67, 37, 24} <= set(counts)


def test_no_fourth_word_is_as_frequent_as_the_third(request_) -> None:
    maker = frequent_maker(request_)
    for draws in range(maker.least, maker.least + 200):
        form = maker.make(draws, random.Random(draws))
        counts = Counter(form.context.split(" coded words. ")[1].split(" "))
        dots = counts.pop("...")
        first, second, third, fourth = (count for _, count in counts.most_common(4))
        assert dots > first > second > third > fourth > 0
