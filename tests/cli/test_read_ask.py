"""A text is read once, and asked in other processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import namm.cli.common
from namm import MemoryCache, load_model
from namm.cache.saved import FILE
from namm.cli import app

runner = CliRunner()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, reader_folder: Path) -> tuple[Any, Any]:
    """Every command gets the random model and its tokenizer, which has no chat template; both are given."""
    found = load_model(str(reader_folder), dtype="float32", device="cpu")
    found[1].chat_template = None
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: found)
    return found


def invoke(*arguments: object) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def read(document: Path, memory: str, output: Path, *more: str) -> dict:
    return json.loads(invoke("read", document, "-o", output, "--memory", memory, "--json", *more))


def asked(output: Path, *questions: str) -> list[dict]:
    return [
        json.loads(line) for line in invoke("ask", output, *questions, "--max-new-tokens", 9, "--json").splitlines()
    ]


def alone(document: Path, memory: str, question: str, *more: str) -> str:
    """The same without the detour: read, decided on where the text ends, and asked in one process."""
    arguments = ("generate", "--file", document, "--question", question, "--memory", memory, "--max-new-tokens", 9)
    return json.loads(invoke(*arguments, "--policy", "full", "--json", *more))["text"].strip()


@pytest.mark.usefixtures("plain")
def test_answers_are_those_of_a_model_that_has_just_read(document: Path, memory: str, tmp_path: Path) -> None:
    told = read(document, memory, tmp_path / "a.memory", "--policy", "full")
    assert told["text"] == "text.txt" and told["file_bytes"] == (tmp_path / "a.memory" / FILE).stat().st_size
    questions = ["Why?", "What is the question?", "Why?"]
    answers = [each["answer"] for each in asked(tmp_path / "a.memory", *questions)]
    assert answers == [alone(document, memory, question) for question in questions]


def test_in_a_chat_too(chat, document: Path, memory: str, tmp_path: Path) -> None:
    read(document, memory, tmp_path / "a.memory", "--policy", "full")
    (found,) = asked(tmp_path / "a.memory", "Why?")
    assert found["answer"] == alone(document, memory, "Why?")
    read(document, memory, tmp_path / "b.memory", "--policy", "full", "--raw")
    (found,) = asked(tmp_path / "b.memory", "Why?")
    assert found["answer"] == alone(document, memory, "Why?", "--raw")


@pytest.mark.usefixtures("plain")
def test_what_is_forgotten_is_not_saved(document: Path, memory: str, tmp_path: Path) -> None:
    told = read(document, memory, tmp_path / "a.memory", "--kept", "0.25")
    whole = read(document, memory, tmp_path / "b.memory", "--policy", "full")
    assert abs(told["kept_fraction"] - 0.25) < 0.02
    assert told["file_bytes"] < 0.6 * whole["file_bytes"]
    first, again = asked(tmp_path / "a.memory", "Why?", "Why?")
    assert first == again, "a question changes nothing for the next"
    assert "Why?" in invoke("ask", tmp_path / "a.memory", "Why?", "Who?", "--max-new-tokens", 2)


@pytest.mark.usefixtures("plain")
def test_fewer_bits_are_saved_as_such(document: Path, memory: str, tmp_path: Path) -> None:
    exact = read(document, memory, tmp_path / "0.memory", "--kept", "0.5")
    packed = read(document, memory, tmp_path / "1.memory", "--kept", "0.5", "--bits", "4")
    assert packed["file_bytes"] < 0.65 * exact["file_bytes"] and packed["held_bytes"] < 0.6 * exact["held_bytes"]
    assert asked(tmp_path / "1.memory", "Why?")


def test_a_rehearsal_is_remembered(chat, document: Path, tmp_path: Path) -> None:
    told = json.loads(invoke("read", document, "-o", tmp_path / "a.memory", "--rehearse", "--kept", "0.5", "--json"))
    assert abs(told["kept_fraction"] - 0.5) < 0.02
    assert asked(tmp_path / "a.memory", "Why?")


def test_what_can_not_be_asked_is_refused(plain, document: Path, memory: str, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        result = runner.invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 1
        return result.stderr

    assert "missing" in refused("ask", tmp_path / "nothing", "Why?")
    read(document, memory, tmp_path / "a.memory")
    assert "empty question" in refused("ask", tmp_path / "a.memory", " ")
    (tmp_path / "blank.txt").write_text(" ")
    assert "is empty" in refused("read", tmp_path / "blank.txt", "-o", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    model, _ = plain
    MemoryCache.load(model, tmp_path / "a.memory").save(tmp_path / "own")
    assert "not written by `namm read`" in refused("ask", tmp_path / "own", "Why?")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert "read by another model" in refused("ask", tmp_path / "a.memory", "Why?")
