"""Pictures and tables for files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from namm.support.extras import need


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts as a Markdown table."""
    ruled = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    ruled.insert(1, "|" + " --- |" * len(headings))
    return "\n".join(ruled) + "\n"


def pyplot() -> Any:
    """matplotlib's, drawing to files only; `require` for where it is not installed."""
    need("matplotlib", "eval").use("Agg")
    return need("matplotlib.pyplot", "eval")
