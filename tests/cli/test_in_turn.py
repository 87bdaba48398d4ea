"""A model and its memory that learn in turn, by the commands that the documents name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from namm import NAMM
from namm.cli import app

runner = CliRunner()


def test_a_memory_is_refined_on_a_tuned_model_and_a_model_tuned_under_it(
    reader_folder: Path, memory: str, document: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    document.write_text("To be, or not to be, that is the question. " * 60)
    folder = {name: str(tmp_path / name) for name in ("tuned", "better", "plain", "again")}
    texts = ["--text", str(document), "--documents", "2"]
    learning = [
        *texts,
        "--model",
        str(reader_folder),
        "--length",
        "100",
        "--steps",
        "2",
        "--rank",
        "2",
        "--piece",
        "64",
    ]
    refining = [*texts, "--from", memory, "--lengths", "800", "--steps", "3"]

    def run(*arguments: str) -> None:
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output

    run("tune", folder["tuned"], "--memory", memory, *learning)
    run("refine", folder["better"], "--model", folder["tuned"], *refining)
    run("refine", folder["plain"], "--model", str(reader_folder), *refining)
    run("tune", folder["again"], "--memory", folder["better"], *learning)
    start, better, plain = (NAMM.from_pretrained(name) for name in (memory, folder["better"], folder["plain"]))
    assert not torch.equal(better.flat, start.flat) and not torch.equal(better.flat, plain.flat)
    told = [json.loads((tmp_path / name / "memory.json").read_text())["fingerprint"] for name in ("tuned", "again")]
    assert told == [start.fingerprint(), better.fingerprint()]
