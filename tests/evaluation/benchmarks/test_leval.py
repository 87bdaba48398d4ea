from __future__ import annotations

import json

import pytest

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.leval import LEVAL
from namm.evaluation.benchmarks.metrics import METRICS


def row(**changes):
    return {
        "input": "Talk of {instruction} and {words}.",
        "instructions": ["What of {words}?", "Who?"],
        "outputs": ["four words and more", "Ann"],
        "source": "meeting_summ",
        "evaluation": "rouge",
    } | changes


def questions(folder, characters, *rows, task="meeting_summ", samples=None):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(LEVAL[f"leval/{task}"].questions(Request(characters, folder, samples=samples)))


def test_there_are_all_tasks_with_known_metrics() -> None:
    assert len(LEVAL) == 20
    assert all(name == task.name and task.metric in METRICS for name, task in LEVAL.items())


def test_every_instruction_is_asked_after_the_document(tmp_path, characters) -> None:
    found = questions(tmp_path, characters, row(), row(instructions=["Why?"], outputs=["So."]))
    assert [(q.name, q.answers) for q in found] == [
        ("0/0", ("four words and more",)),
        ("0/1", ("Ann",)),
        ("1/0", ("So.",)),
    ]
    assert all(q.context.endswith(". Document is as follows. Talk of {instruction} and {words}.") for q in found)
    assert found[0].question == (
        " \nQuestion: What of {words}? The suggested output length is around 4 words. \nThe answer is: "
    )


def test_closed_tasks_have_prompts_of_their_own(tmp_path, characters) -> None:
    (topic, _) = questions(tmp_path, characters, row(evaluation="exam"), task="topic_retrieval_longchat")
    assert topic.context.endswith("Now the record start. Talk of {instruction} and {words}.")
    assert topic.question == "\n\nWhat of {words}?\nThe answer is: "
    (exam, _) = questions(tmp_path, characters, row(evaluation="exam"), task="quality")
    assert exam.question == " \nQuestion: What of {words}? \nThe answer is: "  # no length


def test_rows_for_judges_are_left_out(tmp_path, characters) -> None:
    rows = [row(evaluation="human"), row(), row(evaluation="LLM")]
    assert [q.name for q in questions(tmp_path, characters, *rows)] == ["1/0", "1/1"]


def test_samples_are_instructions(tmp_path, characters) -> None:
    assert [q.name for q in questions(tmp_path, characters, row(), row(), samples=3)] == ["0/0", "0/1", "1/0"]
    assert questions(tmp_path, characters, row(), samples=0) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input": None}, "meeting_summ.jsonl:2: 'input'"),
        ({"instructions": "Who?"}, "meeting_summ.jsonl:2: 'instructions'"),
        ({"outputs": ["a", 3]}, "meeting_summ.jsonl:2: 'outputs'"),
        ({"outputs": ["a"]}, "meeting_summ.jsonl:2: .* same length"),
    ],
)
def test_malformed_rows_are_named(tmp_path, characters, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        questions(tmp_path, characters, row(), row(**changes))
