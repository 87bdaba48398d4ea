"""Print which test holds which fault that was found once, from the tests' marks: ``make faults``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


class Collected:
    """A pytest plugin that writes down the marks of the tests it sees.

    Attributes:
        rows: of a fault's line, a test, and places like it; in the order of the lines.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("fault"):
                for line in mark.args[0].replace(" ", "").split(","):
                    test = item.nodeid.partition("[")[0]
                    self._rows.setdefault((line, test), str(mark.kwargs.get("siblings", "")))

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        return sorted(((line, test, siblings) for (line, test), siblings in self._rows.items()), key=_order)


def _order(row: tuple[str, str, str]) -> tuple[str, int, str]:
    letter, number = re.fullmatch(r"([A-Z]?)(\d*)", row[0]).groups()  # type: ignore[union-attr]
    return letter, int(number or 0), row[1]


def table(rows: list[tuple[str, str, str]]) -> str:
    """The rows as a table in Markdown."""
    lines = [f"| {line} | `{test}` | {siblings} |" for line, test, siblings in rows]
    return "\n".join(["| fault | test | siblings |", "| --- | --- | --- |", *lines])


def main() -> int:
    """Collect all tests, slow ones too, and print the table."""
    collected = Collected()
    code = pytest.main(["--collect-only", "-p", "no:terminal", "-m", "fault", str(FOLDER)], plugins=[collected])
    print(table(collected.rows))
    print(f"\n{len({line for line, _, _ in collected.rows})} faults, {len(collected.rows)} tests")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
