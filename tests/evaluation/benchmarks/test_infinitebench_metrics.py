from __future__ import annotations

import pytest

from namm.evaluation.benchmarks.infinitebench_metrics import INFINITEBENCH_METRICS

BOOK = ["B", "Ann"]  # a choice: letter and text
CODE = ["B", "f.b"]
# metric, text, answers, score by hand
CASES = [
    ("first_integer", " 71432. Or 5", ["71432"], 1.0),
    ("first_integer", "no 7, then 71432", ["71432"], 0.0),
    ("first_integer", "", ["71432"], 0.0),
    ("first_number", "3.5 or 4", ["3.5"], 1.0),
    ("first_number", "93.0", ["93"], 1.0),
    ("first_number", "is 4, 3.5", ["3.5"], 0.0),
    ("first_number", "none", ["3"], 0.0),
    ("last_integer", "12 is -12.", ["-12"], 1.0),
    ("last_integer", "-12 or 12", ["-12"], 0.0),
    ("last_integer", "twelve", ["12"], 0.0),
    ("word", ' "b1-c2"}', ["b1-c2"], 1.0),
    ("word", "b1-c2d", ["b1-c2"], 0.0),
    ("first_values", "[1, 4, 7, 2]", ["1", "4", "8", "2"], 0.5),
    ("first_values", "[1, 4, 8, 2, 9]", ["1", "4", "8", "2"], 1.0),
    ("first_values", "", ["1"], 0.0),
    ("choice", " B. Ann", BOOK, 1.0),
    ("choice", "C, no: B", BOOK, 1.0),  # the last letter of the line
    ("choice", "Bob", BOOK, 1.0),  # as published: a beginning A to D is taken for a letter
    ("choice", "Ann", BOOK, 0.0),  # for the same reason
    ("choice", "Zed", ["B", "Zed"], 1.0),  # the option itself
    ("choice", "I think that the answer is: Ann", BOOK, 1.0),
    ("choice", "I think that the answer is: Cy", BOOK, 0.0),
    ("choice", "so the answer is", BOOK, 0.0),
    ("choice", "Perhaps D then", BOOK, 0.0),
    ("choice", "who knows", BOOK, 0.0),
    ("choice", "", BOOK, 0.0),
    ("option", " B. f.b", CODE, 1.0),
    ("option", "A. f.a", CODE, 0.0),
    ("option", "f.b has it", CODE, 1.0),
    ("option", "The faulty one is: f.b", CODE, 1.0),
    ("option", "The faulty one is: f.a, not f.b", CODE, 0.0),
    ("option", "It is f.b", CODE, 0.0),
    ("option", "", CODE, 0.0),
    ("f1_characters", "小明，在家", ["小红"], 2 * 1 / (4 + 2)),
    ("f1_characters", "小红。", ["小明", "小红"], 1.0),
    ("f1_characters", "。", ["小红"], 0.0),
    ("rouge_lsum", "the cat sat", ["the cat ran fast"], 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
    ("rouge_lsum", "b\na", ["a\nb"], 1.0),  # lines are sentences, in any order
    ("rouge_lsum", "", ["a"], 0.0),
]


@pytest.mark.parametrize("metric, text, answers, expected", CASES)
def test_scores_computed_by_hand(metric, text, answers, expected) -> None:
    if metric == "rouge_lsum":
        pytest.importorskip("rouge_score")
    assert INFINITEBENCH_METRICS[metric](text, answers) == pytest.approx(expected, abs=1e-6)


def test_every_metric_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(INFINITEBENCH_METRICS)
