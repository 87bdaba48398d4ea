"""Where commands print: results to standard output, all else to standard error; no text is taken for markup."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

console = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)


def speak_utf8() -> None:
    """Both streams in UTF-8 whatever the locale; what has no encoding is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def complain(text: str) -> None:
    """One line on standard error, whatever line breaks the text has."""
    errors.print("error: " + " ".join(text.split()), style="red", soft_wrap=True)


def print_json(value: Mapping[str, object]) -> None:
    """One strict JSON object on a line; NaN and infinity are null."""
    from namm.support.files import strict_json

    print(strict_json(value))


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Rows of texts; a line between those that begin differently, where more than one row begins alike.

    Args:
        left: columns aligned to the left, all others to the right.
    """
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    grouped = len({row[0] for row in rows}) < len(rows)
    for number, row in enumerate(rows):
        if grouped and number and row[0] != rows[number - 1][0]:
            table.add_section()
        table.add_row(*row)
    # a file or a pipe has no width of its own
    (console if console.is_terminal else Console(width=120, markup=False, highlight=False, emoji=False)).print(table)
