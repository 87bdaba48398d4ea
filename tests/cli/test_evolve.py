from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from namm import NAMM, NAMMConfig
from namm.cli import app

runner = CliRunner()
TASK = '[[stages]]\ntasks = ["pass_key"]\ntokens = [80]\nsamples = 1\ngenerations = 2\n'
SETTINGS = (
    'parameters = "scorer"\npopulation = 4\nsigma = 0.3\nvalidation = 1\nvalidate_every = 1\ntest = 2\nprice = 0.0\n'
)


@pytest.fixture
def arguments(tmp_path: Path, reader_folder: Path) -> list[str]:
    """Of a run that takes seconds; the folder for it is ``out``."""
    NAMM(NAMMConfig(update_interval=32)).save_pretrained(tmp_path / "memory")
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"Text {number}. " + "The cat sat on the mat. " * 20)
    file = tmp_path / "evolution.toml"
    file.write_text(f'models = ["{reader_folder}"]\nstart = "{tmp_path / "memory"}"\n' + SETTINGS + TASK)
    return ["evolve", str(tmp_path / "out"), "--config", str(file), "--text", str(texts)]


def test_a_run_leaves_everything_and_can_be_resumed(arguments, tmp_path):
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 test samples" in result.stdout and "difference" in result.stdout
    out = tmp_path / "out"
    expected = {
        "config.json",
        "model.safetensors",
        "README.md",
        "evolution.png",
        "journal.jsonl",
        "run.json",
        "tensorboard",
    }
    assert {file.name for file in out.iterdir() if not file.name.startswith(".")} == expected
    first = NAMM.from_pretrained(out).flat
    (out / "model.safetensors").unlink()
    assert "--resume" in runner.invoke(app, arguments).stderr
    result = runner.invoke(app, [*arguments, "--resume", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["memory"] == str(out) and found["test_samples"] == 2 and 0 < found["evolved"]["kept"] <= 1
    assert "generations: 2 of 2" in result.stderr
    assert NAMM.from_pretrained(out).flat.equal(first)


def test_workers_give_the_same(arguments, tmp_path):
    assert runner.invoke(app, arguments).exit_code == 0
    other = [arguments[0], str(tmp_path / "other"), *arguments[2:], "--workers", "1"]
    assert runner.invoke(app, other).exit_code == 0
    assert NAMM.from_pretrained(tmp_path / "other").flat.equal(NAMM.from_pretrained(tmp_path / "out").flat)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--preset", "cpu-demo"], "either --preset"),
        (["--resume"], "holds no run to resume"),
        (["--from", "nowhere"], "no memory 'nowhere'"),
        (["--text", "/nowhere"], "no such file"),
    ],
)
def test_a_mistake_is_one_clear_sentence(arguments, change, message):
    result = runner.invoke(app, [*arguments, *change])
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output


def test_an_unwritable_folder_is_refused_before_any_work(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    result = runner.invoke(app, ["evolve", str(tmp_path / "file" / "out"), *arguments[2:]])
    assert result.exit_code == 1 and "can't write" in result.stderr


def test_an_unknown_preset_lists_those_that_there_are(tmp_path):
    result = runner.invoke(app, ["evolve", str(tmp_path / "out"), "--preset", "tpu"])
    assert result.exit_code == 1 and "cpu-demo" in result.stderr


def test_a_start_from_scratch(arguments, tmp_path):
    assert runner.invoke(app, [*arguments, "--from", "scratch", "--generations", "1"]).exit_code == 0
    assert NAMM.from_pretrained(tmp_path / "out").config.compression == "log"
