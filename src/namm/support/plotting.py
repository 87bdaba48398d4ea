"""Pictures and tables for files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts as a Markdown table."""
    ruled = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    ruled.insert(1, "|" + " --- |" * len(headings))
    return "\n".join(ruled) + "\n"


def pyplot() -> Any:
    """matplotlib's, drawing to files only.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'namm[eval]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plots

    return plots
