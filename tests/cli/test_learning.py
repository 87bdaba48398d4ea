from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import namm.cli.common
from namm import NAMM
from namm.cli import app

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("loaded")


def test_distill_writes_a_memory(document: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [
        "distill",
        str(output),
        "--text",
        str(document),
        "--documents",
        "2",
        "--lengths",
        "64,128",
        "--steps",
        "10",
    ]
    small = ["--update-interval", "32", "--hidden", "8", "--ema", "0.9"]
    result = runner.invoke(app, [*arguments, *small, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "memory": str(output),
        "parameters": NAMM.from_pretrained(output).config.parameters,
        "kept": 0.25,
    }
    assert "training (final): 10 of 10" in result.stderr
    assert NAMM.from_pretrained(output).config.ema == (0.9,)


def test_refine_makes_a_memory_from_a_distilled_one(document: Path, tmp_path: Path) -> None:
    texts = ["--text", str(document), "--documents", "2", "--lengths", "64,128"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    small = ["--steps", "10", "--update-interval", "32", "--hidden", "8", "--ema", "0.9"]
    assert runner.invoke(app, ["distill", first, *texts, *small]).exit_code == 0
    document.write_text("To be, or not to be, that is the question. " * 60)
    result = runner.invoke(app, ["refine", second, "--from", first, *texts, "--bounds", "300", "--steps", "5"])
    assert result.exit_code == 0, result.output
    start, refined = NAMM.from_pretrained(first), NAMM.from_pretrained(second)
    assert not torch.equal(start.flat, refined.flat) and refined.config.kept == start.config.kept
    result = runner.invoke(app, ["refine", second, "--from", first, *texts, "--bounds", "300,100", "--steps", "5"])
    assert result.exit_code == 1 and "differs in: settings" in result.stderr
    result = runner.invoke(app, ["refine", first, "--from", first, *texts])
    assert result.exit_code == 1 and "name another folder" in result.stderr
    assert torch.equal(NAMM.from_pretrained(first).flat, start.flat)


def test_tune_writes_adapters(document: Path, memory: str, tmp_path: Path, monkeypatch, reader, characters) -> None:
    pytest.importorskip("peft")
    model = copy.deepcopy(reader)
    model.name_or_path = "a-model"
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: (model, characters))
    document.write_text("To be, or not to be, that is the question. " * 60)
    questions = tmp_path / "questions.jsonl"
    row = {"context": document.read_text()[:300], "input": "To be or what?", "answers": ["not to be"]}
    questions.write_text(json.dumps(row) + "\n")
    small = ["--memory", memory, "--length", "100", "--documents", "2", "--steps", "2", "--rank", "2", "--piece", "64"]
    for number, (text, more) in enumerate(
        [(document, ["--kept", "1"]), (document, ["--objective", "distill"]), (questions, ["--objective", "answers"])]
    ):
        output = tmp_path / f"out-{number}"
        result = runner.invoke(app, ["tune", str(output), "--text", str(text), *small, *more, "--json"])
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.stdout)["losses"]) == 2 and "learning: 2 of 2" in result.stderr
        assert (output / "adapter_model.safetensors").exists()
        kept = json.loads((output / "memory.json").read_text())
        assert kept == ({"fingerprint": NAMM.from_pretrained(memory).fingerprint(), "kept": 0.25} if number else {})
    for wrong, reason in (
        (["--objective", "answers", "--text", str(document)], "takes --text of .jsonl"),
        (["--objective", "distill", "--kept", "1", "--text", str(document)], "needs a fraction"),
    ):
        result = runner.invoke(app, ["tune", str(tmp_path / "wrong"), *small, *wrong])
        assert result.exit_code == 1 and reason in result.stderr and not (tmp_path / "wrong").exists()
