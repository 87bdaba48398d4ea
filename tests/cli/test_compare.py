from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from namm.cli import app

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("loaded")


@pytest.mark.fault("D24", siblings="eval, evolve, inspect, distill and refine had no --json")
def test_compare_lists_every_policy(memory: str, document: Path) -> None:
    arguments = ["compare", str(document), "--memory", memory, "--tail", "20", "--kept", "0.5"]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["text"], found["tokens"], found["tail"]) == ("text.txt", 430, 20)
    assert [row["policy"] for row in found["policies"]] == [
        "full",
        "namm",
        "streaming",
        "h2o",
        "l2",
        "tova",
        "snapkv",
        "keydiff",
        "expected",
        "kvzip",
        "random",
    ]
    assert found["policies"][1]["tail"]["kept_fraction"] == pytest.approx(0.5, abs=0.005)
    table = runner.invoke(app, arguments)
    assert "410 tokens" in table.stdout and "snapkv" in table.stdout


def test_a_budget_in_tokens(memory: str, document: Path) -> None:
    arguments = ["compare", str(document), "--memory", memory, "--tail", "20", "--json", "--budget", "82"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    fractions = [row["tail"]["kept_fraction"] for row in json.loads(result.stdout)["policies"][1:]]
    assert fractions == pytest.approx([82 / 410] * len(fractions), abs=0.005)
    both = runner.invoke(app, [*arguments, "--kept", "0.5"])
    assert both.exit_code == 1 and "only one of offset, kept and budget" in both.stderr


def test_short_and_unreadable_files_are_named(memory: str, tmp_path: Path) -> None:
    short, binary, empty = tmp_path / "short", tmp_path / "binary", tmp_path / "empty"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\x00\x01")
    empty.write_text(" \n")
    for path, message in ((short, "9 tokens"), (binary, "not UTF-8"), (empty, "is empty")):
        result = runner.invoke(app, ["compare", str(path), "--memory", memory])
        assert result.exit_code == 1 and message in result.stderr
