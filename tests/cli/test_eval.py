from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import namm.cli.common
from namm.cli import app
from namm.evaluation.suites import SUITES, TASKS, find_tasks

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    row = {"context": "To be, or not to be. " * 9, "input": "What?", "answers": ["be"]}
    path.write_text(json.dumps(row) + "\n")
    return path


def run(*arguments: object):
    return runner.invoke(app, ["eval", *map(str, arguments)])


def test_a_file_of_ones_own_under_all_policies(tmp_path: Path, memory: str, file: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        out,
        "--task",
        f"file:{file}",
        "--task",
        "pass_key",
        "--tokens",
        300,
        "--samples",
        1,
        "--memory",
        memory,
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert left == {"results.jsonl", "run.json", "scores.png", "table.json", "table.md"}
    rows = (out / "results.jsonl").read_text().splitlines()
    assert len(rows) == 2 * (1 + 2 * 10) and "| mine | namm |" in (out / "table.md").read_text()
    again = run(*arguments, "--json")
    found = json.loads(again.stdout)
    assert found["folder"] == str(out) and found["results"] == len(rows)
    assert {line["policy"] for line in found["lines"]} == {row["policy"] for row in map(json.loads, rows)}
    assert again.exit_code == 0 and (out / "results.jsonl").read_text().splitlines() == rows


def test_a_task_without_data_is_skipped_with_a_line(tmp_path: Path, memory: str, file: Path) -> None:
    result = run(
        tmp_path / "out", "--task", f"file:{file}", "--task", "ruler/qa_1", "--policy", "full", "--memory", memory
    )
    assert result.exit_code == 0 and "ruler/qa_1 is skipped: write qa_1.jsonl" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a folder"),
        (("out",), "name what to evaluate"),
        (("out", "--task", "longbench/lc"), "did you mean longbench/lcc"),
        (("out", "--suite", "offline", "--policy", "h20"), "unknown policy 'h20'"),
        (("out", "--suite", "offline", "--budget", "1.5"), "not 1.5"),
        (("out", "--task", "file:none.jsonl"), "none.jsonl: no such file"),
        (("out", "--task", "file:empty.jsonl"), "the dataset is empty"),
        (("out", "--task", "file:broken.jsonl"), "broken.jsonl:1"),
        (("out", "--task", "file:broken.jsonl", "--metric", "bleu"), "unknown metric 'bleu'"),
    ],
)
def test_wrong_input_is_one_clear_error(tmp_path: Path, memory: str, arguments, message, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text("{not json\n")
    result = run(*arguments, "--memory", memory)
    assert result.exit_code == 1 and message in result.output.replace("\n", " "), result.output
    assert not list(tmp_path.glob("out/results.jsonl"))


@pytest.mark.fault("C17", siblings="the extras of evolve and of inspect --classes")
@pytest.mark.parametrize("package", ["matplotlib", "rouge"])
def test_a_missing_extra_is_named_before_a_model_is_loaded(tmp_path, memory, file, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: pytest.fail("the model was loaded"))
    result = run(tmp_path / "out", "--task", f"file:{file}", "--metric", "rouge_l", "--memory", memory)
    assert result.exit_code == 1 and f"this needs {package}: pip install 'namm[eval]'" in result.output
    assert not (tmp_path / "out").exists()


def test_suites_are_made_of_tasks() -> None:
    assert all(name in TASKS for names in SUITES.values() for name in names)
    assert [task.name for task in find_tasks(["pass_key", "offline"])].count("pass_key") == 1
    result = run("--list")
    assert result.exit_code == 0 and "offline" in result.output
    found = json.loads(run("--list", "--json").stdout)
    assert found["suites"]["offline"] == list(SUITES["offline"]) and not set(found["other_tasks"]) & {"pass_key"}
