from __future__ import annotations

import io

import pytest
from rich.console import Console

from namm.cli import progress
from namm.cli.progress import EVERY, Lines, stages, waiting


@pytest.mark.fault("D24", siblings="all commands with bars or a spinner, among them loading a model")
def test_without_a_terminal_stages_are_lines_now_and_then() -> None:
    said, now = [], [0.0]
    update = Lines(said.append, lambda: now[0])
    for done in range(0, 101, 10):
        update("reading", done, 100, f"at {done}")
        now[0] += EVERY / 4
    assert said == [
        "reading: 0 of 100, at 0",
        "reading: 40 of 100, at 40",
        "reading: 80 of 100, at 80",
        "reading: 100 of 100, at 100",
    ]
    update("reading", 100, 100)
    update("writing", 0, 2)
    update("writing", 1, 2)
    update("writing", 2, 2)
    assert said[4:] == ["writing: 0 of 2", "writing: 2 of 2"]


@pytest.mark.fault("C18", siblings="descriptions and notes of bars, spinners, titles and cells of tables")
@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_no_markup(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    own = Console(file=file, force_terminal=terminal, markup=False, highlight=False, emoji=False, width=200)
    monkeypatch.setattr(progress, "errors", own)
    with waiting("loading m[/x]"):
        pass
    with stages() as update:
        update("text[/y]", 1, 1, "note [bold]z")
    for shown in ("m[/x]", "text[/y]", "note [bold]z"):
        assert shown in file.getvalue()
