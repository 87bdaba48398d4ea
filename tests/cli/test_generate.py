from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from namm.cli import app, reading
from namm.tasks import packaged_prose

runner = CliRunner()
pytestmark = pytest.mark.usefixtures("loaded")


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


@pytest.mark.parametrize("policy", ["full", "h2o", "kvzip", "random"])
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


def test_a_rehearsal_that_the_policy_does_not_look_at_is_refused(memory: str, document: Path) -> None:
    result = runner.invoke(app, ["generate", "--file", str(document), "--policy", "h2o", "--rehearse"])
    assert result.exit_code == 1 and "does not look at a rehearsal" in result.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--policy", "h2o", "--kept", "0.5"], "'h2o' takes --budget"),
        (["--policy", "full", "--budget", "0.5"], "does not take one"),
        (["--policy", "h2o", "--budget", "12.5"], "whole number"),
        (["--budget", "0.5"], "give --kept"),
        (["--kept", "0.5", "--budget", "100"], "only one of offset, kept and budget"),
    ],
)
def test_options_of_another_policy_are_refused(options, message, document: Path) -> None:
    result = runner.invoke(app, ["generate", "--file", str(document), *options])
    assert result.exit_code == 1 and message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "there is no prompt"),
        (["generate", "--prompt", "  "], "there is no prompt"),
        (["generate", "--file", "missing.txt"], "missing.txt"),
        (["generate", "--prompt", "x", "--policy", "lru"], "unknown policy 'lru'"),
        (["generate", "--prompt", "x", "--memory", "nothing"], "no memory 'nothing'"),
        (["generate", "--prompt", "x", "--policy", "h2o", "--offset", "1"], "'h2o' takes --budget"),
        (["generate", "--prompt", "x", "--kept", "0.4", "--offset", "1"], "only one of offset, kept and budget"),
        (["compare", "missing.txt"], "missing.txt: no such file"),
        (["distill", "out", "--text", "missing"], "missing"),
        (["distill", "out", "--lengths", "long"], "--lengths takes numbers"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", "") and "Traceback" not in result.output


def generated(*arguments: object) -> dict[str, Any]:
    result = runner.invoke(app, ["generate", *map(str, arguments), "--json", "--max-new-tokens", "2"])
    assert result.exit_code == 0, result.output
    return {"stderr": result.stderr} | json.loads(result.stdout)


@pytest.mark.fault("D22", siblings="compare and inspect read texts, not prompts, and stay without")
def test_prompts_go_through_the_chat_template(chat: Any, document: Path, memory: str) -> None:
    words = document.read_text()
    asked = generated("--file", document, "--question", "Why?", "--memory", memory)
    message = f"<user>{words}\n\nQuestion: Why?</><assistant>"
    assert asked["prompt_tokens"] == len(message)
    assert generated("--prompt", "Why?")["prompt_tokens"] == len("<user>Why?</><assistant>")
    raw = generated("--file", document, "--question", "Why?", "--raw", "--memory", memory)
    assert raw["prompt_tokens"] == len(f"{words}\n\nWhy?")


def test_a_chat_template_that_fails_is_named(chat: Any) -> None:
    chat.chat_template = "{{ raise_exception('only tools') }}"
    result = runner.invoke(app, ["generate", "--prompt", "x"])
    assert result.exit_code == 1 and "only tools" in result.stderr and "--raw" in result.stderr


@pytest.mark.fault("D22")
def test_a_question_without_a_file_is_about_the_packaged_text(chat: Any) -> None:
    found = generated("--question", "Why?", "--policy", "streaming")
    assert found["prompt_tokens"] > len(packaged_prose("island")[0].text)
    assert found["prompt_tokens"] > 5000 and "reading: 0 of" in found["stderr"], "progress of the prefill"


@pytest.mark.fault("D22", siblings="the demonstration, which decided where a block happened to end")
@pytest.mark.parametrize(("budget", "kept"), [("0.25", 0.25), ("100", 100 / 436)])
def test_what_is_kept_is_decided_where_the_prompt_ends(budget: str, kept: float, document: Path) -> None:
    prompt = ("--file", document, "--question", "Why?")
    found = generated(*prompt, "--policy", "streaming", "--budget", budget)
    assert found["kept_fraction"] == pytest.approx(kept, abs=1 / 436)


@pytest.mark.parametrize("option", [("--kept", "0.25"), ("--budget", "107")])
def test_the_memory_keeps_what_it_is_told_to(option: tuple[str, str], document: Path, memory: str) -> None:
    found = generated("--file", document, "--memory", memory, *option)
    assert found["kept_fraction"] == pytest.approx(107 / (found["prompt_tokens"] - 1), abs=0.005)


def test_reading_in_chunks_changes_nothing(document: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ("--file", document, "--memory", memory)
    whole = generated(*prompt)
    monkeypatch.setattr(reading, "CHUNK", 50)
    pieces = generated(*prompt)
    for key in ("text", "kept_fraction", "prompt_tokens"):
        assert whole[key] == pieces[key]
    assert "reading: 0 of 429" in pieces["stderr"]


def test_a_prompt_shorter_than_a_block_is_kept_whole_unless_less_is_asked_for(document: Path) -> None:
    prompt = ("--prompt", document.read_text()[:200], "--policy", "streaming")
    assert generated(*prompt)["kept_fraction"] == 1.0
    assert generated(*prompt, "--budget", "0.5")["kept_fraction"] == pytest.approx(0.5, abs=0.01)


def test_what_is_said_of_a_short_prompt(memory: str) -> None:
    result = runner.invoke(app, ["generate", "--prompt", "thirteen toks", "--memory", memory])
    assert result.exit_code == 0 and "seen 12 tokens, kept 12 (100.0%" in result.stdout
    found = generated("--prompt", "thirteen toks", "--memory", memory)
    assert found["prompt_tokens"] == 13 and found["full_bytes"] > 0
    assert found["kept_fraction"] == 1.0


@pytest.mark.fault("D22")
def test_an_empty_answer_is_called_one(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "decode", lambda *_, **__: " \n")
    result = runner.invoke(app, ["generate", "--prompt", "x"])
    assert result.exit_code == 0 and "the model answered nothing" in result.stderr


def test_a_prompt_of_one_token() -> None:
    assert generated("--prompt", "x")["prompt_tokens"] == 1
