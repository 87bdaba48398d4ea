from __future__ import annotations

import pytest

from namm.evaluation.benchmarks.leval_metrics import LEVAL_METRICS
from namm.evaluation.benchmarks.metrics import METRICS

# metric, text, answer, score by hand
CASES = [
    ("first_line", "the role of art in society.", "The role of art in society", 1.0),
    ("first_line", "I\nThe role of Art inSociety", "The role of art in society", 1.0),  # a line of one letter is none
    ("first_line", "Space tourism\nThe role of art in society", "The role of art in society", 0.0),
    ("first_line", "3.0", "3", 1.0),
    ("first_line", "30", "3", 0.0),  # contained, but another number
    ("first_line", "", "The role of art in society", 0.0),
    ("letter", "(B) They left", "(B) They left home.", 1.0),
    ("letter", "I think (C), though B could be", "B", 0.0),
    ("letter", "AB", "A", 0.0),
    ("letter", "no idea", "A", 1.0),  # L-Eval's guess
    ("letter", "no idea", "B", 0.0),
    ("letter", "", "A", 0.0),
    ("letters", "CA", "AC", 1.0),
    ("letters", "A. Reframe the question\nB. Understand\nC. Set", "ABC", 1.0),
    ("letters", "A, B, D", "ABD", 0.25),  # published so: a comma ends no choice
    ("letters", "AD", "ABC", 0.0),
    ("letters", "A. Yes\nQuestion 2. Who?\nB. Ann", "AB", 0.25),
    ("letters", "none of these", "A", 1.0),
    ("letters", "", "ABCD", 0.0),
    ("solution", "4 * 10 = 40 teeth.\nThe answer is 40", "The answer is 40", 1.0),
    ("solution", "The answer is $1,200.50 for 3", "The answer is 1200", 1.0),
    ("solution", "so it is 18 apples\n\nQuestion: what of 20", "The answer is 18", 1.0),
    ("solution", "118", "The answer is 18", 0.0),
    ("solution", "none", "The answer is 18", 0.0),
    ("printed", "Therefore the final output of the code will be `[6, 15]`.", "[6 15]", 1.0),
    ("printed", "First [6 15], but after all the other steps and many more words it is [4 6]", "[6 15]", 0.0),
    ("printed", "[[1. , 2.0], [3, 4]]", "[[1. 2][3 4]]", 1.0),
    ("printed", "and gives [ [ 1 2 ] ]", "[[1 2]]", 1.0),  # brackets joined, or the first is past the 2 + 3 words
    ("printed", "3.0", "3", 1.0),
    ("printed", "", "[6 15]", 0.0),
    ("truth", "It is True.", "True [fact: False]", 1.0),
    ("truth", "False, not true", "True", 0.0),
    ("truth", "untrue/false", "True", 1.0),  # published so
    ("truth", "Maybe", "False", 0.0),
]


@pytest.mark.parametrize("metric, text, answer, expected", CASES)
def test_scores_computed_by_hand(metric, text, answer, expected) -> None:
    assert METRICS[metric](text, [answer], ()) == expected


@pytest.mark.parametrize("metric", sorted(LEVAL_METRICS))
def test_the_best_of_several_answers_counts(metric) -> None:
    (text, answer) = next((case[1], case[2]) for case in CASES if case[0] == metric and case[3] == 1.0)
    assert METRICS[metric](text, ["D 99999", answer], ()) == 1.0


def test_every_metric_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(LEVAL_METRICS)
