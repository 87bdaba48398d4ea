from __future__ import annotations

import json

import pytest

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.infinitebench import INFINITEBENCH
from namm.evaluation.benchmarks.metrics import METRICS

ROWS = {
    "passkey": {"input": "What is the pass key?", "answer": ["71432"]},
    "number_string": {"input": "What is it?", "answer": ["5555511111"]},
    "kv_retrieval": {"input": 'Key: "a"', "answer": "b1-c2"},
    "longbook_sum_eng": {"input": "", "answer": ["A book."]},
    "longbook_choice_eng": {"input": "Who?", "answer": ["Ann"], "options": ["Bob", "Ann", "Cy", "Di"]},
    "longbook_qa_eng": {"input": "Who?", "answer": ["Ann", "Anna"]},
    "longbook_qa_chn": {"input": "谁？", "answer": ["小明"]},
    "longdialogue_qa_eng": {"input": "", "answer": ["ANN"]},
    "math_find": {"input": "The largest number of the list is", "answer": 93},
    "math_calc": {"input": "", "answer": [1, 4, 8]},
    "code_run": {"input": "Compute func_1(-5).", "answer": -12},
    "code_debug": {"input": "", "answer": ["f.b"], "options": ["f.a", "f.b", "f.c", "f.d"]},
}
RIGHT = {
    "passkey": " 71432.",
    "number_string": " 5555511111",
    "kv_retrieval": ' "b1-c2"}',
    "longbook_sum_eng": "A book.",
    "longbook_choice_eng": " B. Ann",
    "longbook_qa_eng": "Anna!",
    "longbook_qa_chn": "小明。",
    "longdialogue_qa_eng": "Ann, of course",
    "math_find": " 93.0",
    "math_calc": " [1, 4, 8]",
    "code_run": "It is -12",
    "code_debug": " B. f.b",
}


@pytest.mark.parametrize("name", ROWS)
def test_every_task_is_asked_and_scored(name, tmp_path, characters) -> None:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": 3, "context": "Long {input} ago."} | ROWS[name]) + "\n")
    task = INFINITEBENCH[f"infinitebench/{name}"]
    (question,) = task.questions(Request(characters, tmp_path))
    assert question.context.endswith("Long {input} ago.") and question.name == "3"
    assert "{" not in question.context.removesuffix("Long {input} ago.") + question.question
    assert METRICS[task.metric](RIGHT[name], question.answers, ()) == 1.0
    assert METRICS[task.metric]("zzz", question.answers, ()) == 0.0
    assert METRICS[task.metric]("", question.answers, ()) == 0.0


def test_there_are_all_twelve() -> None:
    assert {f"infinitebench/{name}" for name in ROWS} == set(INFINITEBENCH)


@pytest.mark.parametrize(
    "name, context, question",
    [
        (
            "passkey",
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz "
            "you about the important information.\n\nLong ago.",
            "\n\nWhat is the pass key?\n\nThe pass key is",
        ),
        (
            "longbook_choice_eng",
            "Read the book and answer the question.\n\nLong ago.",
            "\n\nQuestion: Who?\nA. Bob\nB. Ann\nC. Cy\nD. Di\n\nThe letter of the correct answer is",
        ),
        (
            "math_find",
            "What is the largest number in the following list?\n\nLong ago.",
            "\n\nThe largest number of the list is",
        ),
        (
            "code_run",
            "There is a function called func_1 in the following Python code.\n\nLong ago.",
            "\n\nPlease compute the exact value of func_1(-5). The value of func_1(-5) is",
        ),
    ],
)
def test_prompts_are_the_published_ones(name, context, question, tmp_path, characters) -> None:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"context": "Long ago."} | ROWS[name]) + "\n")
    (made,) = INFINITEBENCH[f"infinitebench/{name}"].questions(Request(characters, tmp_path))
    assert (made.context, made.question) == (context, question)


@pytest.mark.parametrize("answer", [[1, 4, 8], ["1", "4", "8"], [[1, 4, 8]]])
def test_values_of_a_calculation_in_every_form(answer, tmp_path, characters) -> None:
    row = {"context": "1 + 3 + 4", "input": "", "answer": answer}
    (tmp_path / "math_calc.jsonl").write_text(json.dumps(row) + "\n")
    (made,) = INFINITEBENCH["infinitebench/math_calc"].questions(Request(characters, tmp_path))
    assert made.answers == ("1", "4", "8")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("code_debug", {"options": ["f.a"]}, "'options' must be a list of four"),
        ("code_debug", {"answer": ["f.x"]}, "none of the options"),
        ("math_find", {"input": "Find it"}, "names no number"),
        ("code_run", {"input": "Run it"}, "calls no function"),
        ("passkey", {"answer": None}, "'answer'"),
        ("passkey", {"answer": []}, "'answer'"),
        ("math_find", {"answer": "many"}, "'answer' must be a number"),
        ("math_calc", {"answer": [1, "many"]}, "'answer' must be a number"),
        ("longbook_qa_eng", {"input": None}, "'input'"),
    ],
)
def test_malformed_rows_are_named(name, change, message, tmp_path, characters) -> None:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"context": "Long ago."} | ROWS[name] | change) + "\n")
    with pytest.raises(ValueError, match=f"{name}.jsonl:1: .*{message}"):
        list(INFINITEBENCH[f"infinitebench/{name}"].questions(Request(characters, tmp_path)))
