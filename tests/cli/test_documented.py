"""Every command line that the README, the documents and the cards show can be parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from namm.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    page for pattern in ("*.md", "docs/**/*.md", "src/**/*.md", "examples/*.md") for page in sorted(ROOT.glob(pattern))
]


def command_lines(text: str) -> Iterator[str]:
    """Lines of blocks of code that begin with `namm`."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?namm ", line):
                yield line.removeprefix("$ ")


def mentions(text: str) -> Iterator[str]:
    """Spans of code that begin with `namm` and a command; they may leave things out."""
    for span in re.findall(r"`(namm [a-z][^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield " ".join(span.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    program, text = typer.main.get_command(app), page.read_text(encoding="utf-8")
    for line in (*command_lines(text), *mentions(text)):
        command = program.commands.get(line.split()[1])
        if command is None:
            assert line.split()[1] in ("--version", "--debug", "--help", "CMD", "COMMAND"), line
            continue
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line
    for line in command_lines(text):
        _, name, *arguments = shlex.split(line, comments=True)
        if name in program.commands and arguments != ["--help"]:
            program.commands[name].make_context(name, arguments).close()


def test_the_readme_shows_commands() -> None:
    lines = command_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"demo", "generate"} <= {line.split()[1] for line in lines}
