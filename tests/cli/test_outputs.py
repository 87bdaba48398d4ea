"""No command writes over what it reads, or over what no run of ours wrote; it says so before it loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import namm.cli.common
from namm.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(namm.cli.common, "load", load)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.fault("B12", siblings="all five commands that write, their models, memories, texts, data and tasks")
@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "m", "--model", "m"],
        ["distill", "m/inside", "--model", "m"],
        ["distill", "m", "--text", "m/text.txt"],
        ["refine", "m", "--model", "m"],
        ["refine", "mem", "--from", "mem"],
        ["refine", "m", "--text", "m"],
        ["evolve", "m", "--config", "m/run.toml"],
        ["evolve", "mem", "--preset", "cpu-demo", "--from", "mem"],
        ["evolve", "m", "--preset", "cpu-demo", "--text", "m"],
        ["eval", "m", "--task", "pass_key", "--model", "m"],
        ["eval", "mem", "--task", "pass_key", "--memory", "mem"],
        ["eval", "m", "--task", "pass_key", "--data", "m"],
        ["eval", "m", "--task", "file:m/tasks.jsonl"],
        ["inspect", "m/text.txt", "-o", "m/text.txt"],
        ["inspect", "m/text.txt", "-o", "m/config.json", "--model", "m"],
        ["inspect", "m/text.txt", "--classes", "m"],
        ["inspect", "m/text.txt", "--classes", "mem", "--memory", "mem"],
    ],
    ids=" ".join,
)
def test_an_input_is_never_an_output(
    arguments: list[str], tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(memory).rename("mem")
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/text.txt").write_text("text " * 100)
    Path("m/tasks.jsonl").write_text('{"context": "a", "input": "b", "answers": ["c"]}\n')
    Path("m/run.toml").write_text('[[stages]]\ntasks = ["pass_key"]\n')
    before = contents(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1 and "name another" in result.stderr, result.output
    assert contents(tmp_path) == before


@pytest.mark.fault("B12")
@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "out"],
        ["refine", "out"],
        ["evolve", "out", "--preset", "cpu-demo"],
        ["eval", "out", "--task", "pass_key"],
        ["inspect", "--classes", "out"],
    ],
    ids=" ".join,
)
def test_files_that_no_run_wrote_stay(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/model.safetensors").write_bytes(b"precious")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1 and "model.safetensors" in result.stderr.replace("\n", ""), result.output
    assert contents(tmp_path) == {"out/model.safetensors": b"precious"}


@pytest.mark.fault("C17", siblings="inspect --classes, evolve, evolve --ray")
@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["eval", "out", "--task", "pass_key"], "matplotlib", "eval"),
        (["inspect", "--classes", "out"], "matplotlib", "eval"),
        (["evolve", "out", "--preset", "cpu-demo"], "cma", "evolve"),
        (["evolve", "out", "--preset", "cpu-demo", "--ray", "local"], "ray", "ray"),
    ],
)
def test_missing_packages_are_asked_for_first(
    arguments: list[str], package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1 and f"needs {package}: pip install 'namm[{extra}]'" in result.stderr
    assert not Path("out").exists(), "nothing is begun"
