from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import namm.cli.common
from namm.cli import app
from namm.support.version import VERSION

runner = CliRunner()


def namm_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "namm", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loading a model fails as it is told to."""

    def fail_with(error: BaseException) -> None:
        def load(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(namm.cli.common, "load", load)

    return fail_with


def test_the_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"namm {VERSION}\n"


@pytest.mark.fault("C18", siblings="device names torch does not know, `meta`, `mps` and a CUDA index that is not there")
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "meta", "gpu", "cpu:x", "[/x]"])
def test_a_device_that_is_not_there_is_one_sentence(device: str, reader_folder: Path) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available() or device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    result = runner.invoke(app, ["generate", "--prompt", "x", "--model", str(reader_folder), "--device", device])
    assert result.exit_code == 1 and result.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert "--device cpu always works" in result.stderr and "Traceback" not in result.output


@pytest.mark.fault("C18", siblings="--model and --memory of every command, file names")
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--prompt", "x", "--model", "./m[/x]"],
        ["generate", "--prompt", "x", "--memory", "./m[/x]"],
        ["generate", "--prompt", "x", "--file", "m[/x]"],
        ["inspect", "m[/x]", "-o", "page.html"],
        ["plan", "./m[/x]"],
    ],
)
def test_markup_in_names_is_text(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1 and "m[/x]" in result.stderr and "Traceback" not in result.output
    assert "a bug" not in result.stderr


@pytest.mark.fault("C18", siblings="every option that takes a number, nan as well as inf")
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--prompt", "x", "--policy", "h2o", "--budget", "inf"],
        ["generate", "--prompt", "x", "--budget", "nan"],
        ["generate", "--prompt", "x", "--kept", "nan"],
        ["generate", "--prompt", "x", "--offset", "-inf"],
        ["plan", "smollm2-135m", "--gpu", "inf"],
        ["plan", "smollm2-135m", "--kept", "nan"],
        ["eval", "out", "--task", "pass_key", "--budget", "nan"],
        ["eval", "out", "--task", "pass_key", "--rope-factor", "inf"],
        ["distill", "out", "--power", "inf"],
        ["refine", "out", "--recall", "nan"],
    ],
)
def test_numbers_are_finite(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    # some versions of typer refuse NaN where there are bounds, in their own words
    assert result.exit_code == 2 and re.search(
        "no finite number|not in the range|greater than|less than", result.stderr
    )
    assert not result.stdout and "Traceback" not in result.stderr


@pytest.mark.fault("C18")
@pytest.mark.parametrize("arguments", [["generate", "--prompt", "x"], ["plan", "smollm2-135m"], ["distill", "out"]])
def test_an_unknown_dtype_is_a_mistake_in_usage(arguments: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, [*arguments, "--dtype", "bf16"])
    assert result.exit_code == 2 and "bf16" in result.stderr and "bfloat16" in result.stderr


@pytest.mark.fault("C18", siblings="a number, a text, a list of pairs")
@pytest.mark.parametrize("content", ["[]", "1", '"x"', "[[1, 2]]", "{", ""])
def test_a_memory_configuration_that_is_no_object(content: str, tmp_path: Path, memory: str) -> None:
    (Path(memory) / "config.json").write_text(content)
    for arguments in (["generate", "--prompt", "x"], ["plan", "smollm2-135m"]):
        result = runner.invoke(app, [*arguments, "--memory", memory])
        assert result.exit_code == 1 and "config.json" in result.stderr and "bug" not in result.stderr, result.stderr


@pytest.mark.fault("C18", siblings="whatever quantiser a configuration names")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_model_without_its_package(method: str, reader_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in reader_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    result = runner.invoke(app, ["generate", "--prompt", "x", "--model", str(folder)])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: ") and "bug" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 1, "error: /a/b: No such file or directory"),
        (PermissionError(13, "Permission denied", "/a"), 1, "error: /a: Permission denied"),
        (ValueError("two\n  lines"), 1, "error: two lines"),
        (ImportError("this needs x: pip install x"), 1, "error: this needs x"),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyError("x"), 1, "this is a bug in namm (KeyError: 'x')"),
        (TypeError("no int"), 1, "`namm --debug`"),
        (ImportError("cannot import name 'x'", name="namm.tasks"), 1, "this is a bug in namm"),
    ],
)
def test_every_error_is_one_sentence(error: BaseException, code: int, said: str, failing: Any) -> None:
    failing(error)
    result = runner.invoke(app, ["generate", "--prompt", "x"])
    assert result.exit_code == code and said in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout


def test_debug_brings_the_traceback_back(failing: Any) -> None:
    failing(ValueError("deep inside"))
    result = runner.invoke(app, ["--debug", "generate", "--prompt", "x"])
    assert isinstance(result.exception, ValueError)
    done = namm_command("--debug", "generate", "--prompt", "x", "--memory", "nothing")
    assert done.returncode == 1 and "Traceback" in done.stderr and "MemoryFileError" in done.stderr


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = f"{sys.executable} -m namm eval --list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8")
    assert done.stderr == "" and done.returncode != 0


@pytest.mark.fault("C19", siblings="standard output and standard error of every command")
def test_output_is_utf8_whatever_the_locale(tmp_path: Path, memory: str, reader_folder: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("„Größe“ — naïve café. " * 30, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    common = ["--memory", memory, "--model", reader_folder, "--dtype", "float32"]
    done = namm_command("inspect", text, "-o", tmp_path / "page.html", *common, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert "±" in done.stdout and "text.txt" in (tmp_path / "page.html").read_text(encoding="utf-8")
    out = tmp_path / "out"
    run = ["eval", out, "--task", "pass_key", "--text", text, "--tokens", 200, "--samples", 2, "--policy", "namm"]
    done = namm_command(*run, *common, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert "±" in done.stdout and "±" in (out / "table.md").read_text(encoding="utf-8")
