from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from namm import NAMM, NAMMConfig  # noqa: E402
from namm.evaluation.harness import HarnessModel, harness_policy  # noqa: E402

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
ROLLED = """
output_type: loglikelihood_rolling
doc_to_target: context
metric_list: [{metric: byte_perplexity}]
"""
NAMES = ("choice", "written", "rolled")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"context": TEXT * n + "Who", "choices": [" is it", " am I", " goes"], "gold": n % 3, "target": "x"}
        for n in range(3, 9)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, form in (("choice", CHOICE), ("written", WRITTEN), ("rolled", ROLLED)):
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
        tasks=list(NAMES),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in NAMES}
    return found["results"], samples


@pytest.mark.parametrize("batch", [1, 2])
def test_the_full_cache_scores_as_lm_evals_own_model(reader_folder, tasks, memory, batch) -> None:
    expected, wanted = run("hf", reader_folder, tasks, batch_size=batch)
    scores, found = run("namm", reader_folder, tasks, memory=memory, policy="full", batch_size=batch)
    assert scores["choice"]["acc,none"] == expected["choice"]["acc,none"]
    assert found["written"] == wanted["written"]
    assert found["rolled"] == [pytest.approx(one, abs=1e-3) for one in wanted["rolled"]]
    for own, other in zip(found["choice"], wanted["choice"], strict=True):
        assert [one[0] for one in own] == pytest.approx([one[0] for one in other], abs=1e-4)
    _, forgetful = run("namm", reader_folder, tasks, memory=memory, policy="streaming", budget=0.1, batch_size=batch)
    assert [one[0] for one in forgetful["choice"][-1]] != pytest.approx(
        [one[0] for one in wanted["choice"][-1]], abs=1e-4
    )
    assert forgetful["written"] != wanted["written"]
    assert forgetful["rolled"][-1] != pytest.approx(wanted["rolled"][-1], abs=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("h20", None, None), "unknown policy 'h20'"),
        (("namm", None, 0.5), "kept=FRACTION"),
        (("h2o", 0.5, None), "budget=FRACTION"),
        (("full", None, 0.5), "keeps everything"),
        (("h2o", None, 1.5), "at most 1, .* not 1.5"),
        (("h2o", None, "half"), "at most 1, .* not 'half'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(memory, arguments, message) -> None:
    name, kept, budget = arguments
    with pytest.raises(ValueError, match=message):
        harness_policy(name, memory, kept, budget)


@pytest.mark.parametrize("name", ["peft", "delta", "parallelize", "gguf_file", "mixed_precision_dtype"])
def test_an_argument_of_hf_without_effect_is_refused(reader_folder, memory, name) -> None:
    with pytest.raises(ValueError, match=f"can't apply {name}"):
        HarnessModel(str(reader_folder), memory, "full", device="cpu", **{name: "some"})


def test_an_unknown_argument_reaches_the_loading_of_the_model(reader_folder, memory) -> None:
    with pytest.raises(TypeError, match="misspelt"):
        HarnessModel(str(reader_folder), memory, "full", device="cpu", misspelt=1)


def test_a_tokenizer_can_be_named_for_tasks_that_load_their_own(reader_folder, memory) -> None:
    model = HarnessModel(str(reader_folder), memory, "full", device="cpu", tokenizer=str(reader_folder), max_length=99)
    assert model.tok_encode("to be") == list(model.tokenizer("to be")["input_ids"])
    assert model.max_length == 99
