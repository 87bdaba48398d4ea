from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from namm import NAMM, NAMMConfig  # noqa: E402
from namm.evaluation.harness import harness_policy  # noqa: E402

TEXT = "To be, or not to be, that is the question. "
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: context
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}]
"""
WRITTEN = """
output_type: generate_until
doc_to_target: target
generation_kwargs: {until: ["~"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"context": TEXT * n + "Who", "choices": [" is it", " am I", " goes"], "gold": n % 3, "target": "x"}
        for n in range(3, 9)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, form in (("choice", CHOICE), ("written", WRITTEN)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file) + form)
    return tmp_path


@pytest.fixture
def memory(tmp_path: Path) -> str:
    NAMM(NAMMConfig(update_interval=32)).save_pretrained(tmp_path / "memory")
    return str(tmp_path / "memory")


def run(model: str, folder: Path, tasks: Path, **arguments: object):
    found = simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "device": "cpu", "dtype": "float32", **arguments},
        tasks=["choice", "written"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in ("choice", "written")}
    return found["results"], samples


@pytest.mark.parametrize("batch", [1, 2])
def test_the_full_cache_scores_as_lm_evals_own_model(reader_folder, tasks, memory, batch) -> None:
    expected, wanted = run("hf", reader_folder, tasks, batch_size=batch)
    scores, found = run("namm", reader_folder, tasks, memory=memory, policy="full", batch_size=batch)
    assert scores["choice"]["acc,none"] == expected["choice"]["acc,none"]
    assert found["written"] == wanted["written"]
    for own, other in zip(found["choice"], wanted["choice"], strict=True):
        assert [one[0] for one in own] == pytest.approx([one[0] for one in other], abs=1e-4)
    _, forgetful = run("namm", reader_folder, tasks, memory=memory, policy="streaming", budget=0.1, batch_size=batch)
    assert [one[0] for one in forgetful["choice"][-1]] != pytest.approx(
        [one[0] for one in wanted["choice"][-1]], abs=1e-4
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("h20", None, None), "unknown policy 'h20'"),
        (("namm", None, 0.5), "kept=FRACTION"),
        (("h2o", 0.5, None), "budget=FRACTION"),
    ],
)
def test_arguments_that_do_not_fit_are_named(memory, arguments, message) -> None:
    name, kept, budget = arguments
    with pytest.raises(ValueError, match=message):
        harness_policy(name, memory, kept, budget)
