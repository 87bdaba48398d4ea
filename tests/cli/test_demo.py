from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from namm.cli import app
from namm.cli.demo import QUESTIONS

runner = CliRunner()


def answers(shown: str) -> dict[str, dict[str, str]]:
    """Of each question by the cache that was asked."""
    return {
        question: dict(re.findall(r"^  (full|namm): (.*)$", shown.partition(question)[2].partition("\n\n")[0], re.M))
        for question in QUESTIONS
    }


@pytest.mark.fault("D22", siblings="the order of phrases, the table: all is measured")
def test_the_demonstration_and_what_it_tells_to_type_next(
    chat: Any, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["demo", "--memory", memory, "--kept", "0.3"])
    assert result.exit_code == 0, result.output
    shown = result.stdout
    for expected in ("most of it is forgotten", "kept most", "kept least", "streaming", "h2o"):
        assert expected in shown
    found = answers(shown)
    assert all(set(of) == {"full", "namm"} for of in found.values())
    assert "snapkv" not in shown, "the table is short"
    commands = re.findall(r"^  (namm .+)$", shown.partition("What to type next")[2], re.M)
    assert len(commands) == 3
    for command in commands:
        followed = runner.invoke(app, shlex.split(command)[1:])
        assert followed.exit_code == 0, followed.output
    assert (tmp_path / "page.html").exists()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.fault("D22")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_model_answers_rightly_with_a_quarter_kept(dtype: str) -> None:
    result = runner.invoke(app, ["demo", "--dtype", dtype])
    assert result.exit_code == 0, result.output
    for question, right in zip(QUESTIONS, ("Barnaby", "Margaret Hale", "hoopoe"), strict=True):
        found = answers(result.stdout)[question]
        assert found["full"] == found["namm"] and right in found["full"]
