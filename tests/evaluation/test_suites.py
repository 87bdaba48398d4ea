from __future__ import annotations

import json
import sys

import pytest

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.metrics import METRICS
from namm.evaluation.suites import SUITES, TASKS, find_tasks
from namm.tasks import packaged_prose, pass_key
from namm.tasks.metrics import LIKELIHOOD


def test_suites_hold_tasks_whose_metrics_are_known() -> None:
    assert {name for tasks in SUITES.values() for name in tasks} <= set(TASKS)
    assert {task.metric for task in TASKS.values()} <= {LIKELIHOOD, *METRICS}
    assert all(task.name == name for name, task in TASKS.items())


def test_a_task_named_twice_is_run_once() -> None:
    found = find_tasks(["offline", "pass_key", "ruler/vt", "offline"])
    assert [task.name for task in found] == [*SUITES["offline"], "ruler/vt"]


@pytest.mark.parametrize("name, hint", [("long-bench", "did you mean longbench"), ("%", "--list")])
def test_an_unknown_name_is_refused(name, hint) -> None:
    with pytest.raises(ValueError, match=hint):
        find_tasks([name])


def test_samples_of_a_generated_task_are_those_of_consecutive_seeds(characters) -> None:
    request = Request(characters, text=tuple(packaged_prose("heldout")), tokens=600, samples=2, seed=4)
    found = [
        (question.context, question.question, question.answers) for question in TASKS["pass_key"].questions(request)
    ]
    samples = [pass_key(request.text, characters, tokens=600, seed=seed) for seed in (4, 5)]
    assert found == [(sample.context, sample.question, (sample.answer,)) for sample in samples]


def test_a_file_of_ones_own_is_a_task(tmp_path, characters) -> None:
    row = {"context": "A text.", "input": "Who?", "answers": ["Ann", ""], "all_classes": ["x"]}
    (tmp_path / "mine.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    (task,) = find_tasks([f"file:{tmp_path / 'mine.jsonl'}"], metric="exact")
    assert (task.name, task.metric) == ("mine", "exact")
    first, second = task.questions(Request(characters, samples=2))
    assert (first.context, first.question, first.answers) == ("A text.", "\n\nWho?\nAnswer:", ("Ann",))
    assert first.classes == ("x",) and first.name != second.name


@pytest.mark.fault("C17")
def test_a_dataset_without_its_package_is_refused_when_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"datasets: pip install 'namm\[eval\]'"):
        find_tasks(["file:somebody/something"])
