"""Tables of a server under load."""

from __future__ import annotations

import statistics
from typing import Any

from namm.support.plotting import markdown_table

Row = dict[str, Any]
MINUTE = 60  # seconds


def serving_table(found: Row) -> str:
    """How much was answered while all clients asked, and how soon."""
    lines = []
    for row in found["rows"]:
        told = str(row["clients"]), str(row["batch"]), mib(row["memory"]), f"{row['demand'] / row['memory']:.1f}"
        rates = [row[name] / row["seconds"] for name in ("tokens_within", "answered_within")]
        waits = [waited(row[name]) for name in ("first_seconds", "whole_seconds")]
        lines.append((*told, f"{rates[0]:.1f}", f"{rates[1]:.2f}", *waits))
    headings = "clients", "at once", "budget MiB", "asked of it", "tokens a second", "answers a second"
    return markdown_table((*headings, "first token s", "answer s"), lines)


def checked_table(found: Row) -> str:
    """What became of every request, and what caches held."""
    lines = []
    for row in found["rows"]:
        counts = [row[name] for name in ("answered", "wrong", "refused")]
        held = max(row["samples"]["held"]), row["after"]["held"], row["left"]["held"]
        who = str(row["clients"]), str(row["batch"])
        lines.append((*who, *map(str, counts), str(len(row["failed"])), *map(mib, held)))
    headings = "clients", "at once", "answered", "wrong", "429", "failed"
    return markdown_table((*headings, "MiB at most", "after the load", "documents deleted"), lines)


def minutes_table(found: Row) -> str:
    """Of the longest load, minute by minute: what the server held while all clients asked."""
    longest = max(found["rows"], key=lambda row: row["seconds"])
    minutes: dict[int, list[dict[str, float]]] = {}
    for values in zip(*longest["samples"].values(), strict=True):
        seen = dict(zip(longest["samples"], values, strict=True))
        if seen["seconds"] <= longest["seconds"]:
            minutes.setdefault(int(seen["seconds"] // MINUTE), []).append(seen)
    lines = []
    for minute, all_seen in sorted(minutes.items()):
        served, waiting, held = (
            statistics.mean(seen[name] for seen in all_seen) for name in ("active", "queued", "held")
        )
        most = [mib(max(seen[name] for seen in all_seen)) for name in ("held", "reserved", "resident")]
        lines.append((str(minute + 1), f"{served:.1f}", f"{waiting:.1f}", mib(held), *most))
    headings = f"minute of {longest['clients']} clients", "served at once", "waiting", "MiB held"
    return markdown_table((*headings, "at most", "reserved at most", "process at most"), lines)


def mib(size: float) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:.1f}"


def waited(seconds: list[float]) -> str:
    """Median and 95th percentile."""
    if not seconds:
        return ""
    rising = sorted(seconds)
    return f"{statistics.median(rising):.2f} ({rising[int(0.95 * (len(rising) - 1))]:.2f})"
