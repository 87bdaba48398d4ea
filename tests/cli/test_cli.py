from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from namm import NAMM
from namm.cli import app

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 10)
    return path


def test_generate_as_json_reports_what_was_held(memory: str, document: Path) -> None:
    result = runner.invoke(
        app,
        [
            "generate",
            "--file",
            str(document),
            "--question",
            "Why?",
            "--memory",
            memory,
            "--max-new-tokens",
            "5",
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prompt_tokens"] == 430 + 2 + 4 and 1 <= found["new_tokens"] <= 5
    assert 0 < found["kept_fraction"] < 1 and found["held_bytes"] > 0


@pytest.mark.parametrize("policy", ["full", "h2o", "random"])
def test_generate_under_every_kind_of_policy(policy: str, document: Path) -> None:
    arguments = [
        "generate",
        "--file",
        str(document),
        "--policy",
        policy,
        "--max-new-tokens",
        "3",
        "--json",
    ]
    result = runner.invoke(app, arguments if policy == "full" else [*arguments, "--budget", "0.5"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "options, message",
    [
        (["--policy", "h2o", "--kept", "0.5"], "'h2o' takes --budget"),
        (["--policy", "full", "--budget", "0.5"], "does not take one"),
        (["--policy", "h2o", "--budget", "12.5"], "whole number"),
    ],
)
def test_options_of_another_policy_are_refused(options, message, document: Path) -> None:
    result = runner.invoke(app, ["generate", "--file", str(document), *options])
    assert result.exit_code == 1 and message in result.stderr


def test_compare_lists_every_policy(memory: str, document: Path) -> None:
    arguments = ["compare", str(document), "--memory", memory, "--tail", "20", "--kept", "0.5"]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["policy"] for row in rows] == ["full", "namm", "streaming", "h2o", "l2", "tova", "snapkv", "random"]
    table = runner.invoke(app, arguments)
    assert "410 tokens" in table.stdout and "snapkv" in table.stdout


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
    result = runner.invoke(app, [*arguments, "--update-interval", "32", "--hidden", "8", "--ema", "0.9"])
    assert result.exit_code == 0, result.output
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
    assert result.exit_code == 1 and "work of another" in result.stderr
    result = runner.invoke(app, ["refine", first, "--from", first, *texts])
    assert result.exit_code == 1 and "name another folder" in result.stderr
    assert torch.equal(NAMM.from_pretrained(first).flat, start.flat)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "the prompt is empty"),
        (["generate", "--prompt", "  "], "the prompt is empty"),
        (["generate", "--file", "missing.txt"], "missing.txt"),
        (["generate", "--prompt", "x", "--policy", "lru"], "unknown policy 'lru'"),
        (["generate", "--prompt", "x", "--memory", "nothing"], "no memory 'nothing'"),
        (["generate", "--prompt", "x", "--policy", "h2o", "--offset", "1"], "'h2o' takes --budget"),
        (["generate", "--prompt", "x", "--kept", "0.4", "--offset", "1"], "either offset or kept"),
        (["compare", "missing.txt"], "missing.txt: no such file"),
        (["compare", "--kept", "0.9"], "not for 0.9"),
        (["distill", "out", "--text", "missing"], "missing"),
        (["distill", "out", "--lengths", "long"], "--lengths takes numbers"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", "") and "Traceback" not in result.output


def test_short_and_unreadable_files_are_named(memory: str, tmp_path: Path) -> None:
    short, binary, empty = tmp_path / "short", tmp_path / "binary", tmp_path / "empty"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\x00\x01")
    empty.write_text(" \n")
    for path, message in ((short, "9 tokens"), (binary, "not UTF-8"), (empty, "is empty")):
        result = runner.invoke(app, ["compare", str(path), "--memory", memory])
        assert result.exit_code == 1 and message in result.stderr


def test_the_demonstration_runs(memory: str) -> None:
    result = runner.invoke(app, ["demo", "--memory", memory, "--tokens", "600"])
    assert result.exit_code == 0, result.output
    assert "most of it is forgotten" in result.stdout and "pass key" in result.stdout and "snapkv" in result.stdout
