"""Rows of an evaluation brought together: by task, and over all tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from namm.support.journal import Row
from namm.support.plotting import markdown_table
from namm.support.statistics import mean_interval, ratio_interval

AVERAGE = "average"


@dataclass(frozen=True)
class Line:
    """One policy with one budget on one task.

    Attributes:
        samples: how many.
        score: mean of the metric.
        interval: half the 95% interval of `score` (NaN for a single sample).
        relative: mean score over the full cache's mean score on the same samples; NaN without a full cache, or where it
            scores 0. For the average over tasks the mean of the tasks' values (the paper's normalised score).
        relative_interval: half the 95% interval of `relative`: of a ratio of means over samples, for the average of a
            mean over tasks.
        kept: mean fraction of tokens.
        held: mean fraction of a full cache's bytes, state included.
        seconds: mean of a sample.
    """

    model: str
    task: str
    policy: str
    aim: float
    samples: int
    score: float
    interval: float
    relative: float
    relative_interval: float
    kept: float
    held: float
    seconds: float


def lines(rows: Sequence[Row]) -> list[Line]:
    """A line for each model, task, aim and policy, and where there are several tasks one for their average."""
    found: list[Line] = []
    for model in _unique(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        tasks = _unique(row["task"] for row in own)
        settings = _unique((_aim(row), row["policy"]) for row in own)
        settings.sort(key=lambda setting: (setting[1] != "full", -setting[0]))
        for task in tasks:
            group = [row for row in own if row["task"] == task]
            full = {row["sample"]: score(row) for row in group if row["policy"] == "full"}
            for aim, policy in settings:
                chosen = [row for row in group if row["policy"] == policy and _aim(row) == aim]
                if chosen:
                    found.append(_line(model, task, policy, aim, chosen, full))
        if len(tasks) > 1:
            found += [_average(model, policy, aim, found) for aim, policy in settings]
    return found


def score(row: Row) -> float:
    """NaN where the model gave nothing that could be scored; JSON has only null for that."""
    return math.nan if row["score"] is None else float(row["score"])


def _aim(row: Row) -> float:
    """The full cache was aimed at nothing, whichever budget it was measured beside."""
    return 1.0 if row["policy"] == "full" else row["aim"]


def _line(model: str, task: str, policy: str, aim: float, rows: list[Row], full: dict[str, float]) -> Line:
    mean, interval = mean_interval([score(row) for row in rows])
    matched = [full[row["sample"]] for row in rows if row["sample"] in full]
    whole = len(matched) == len(rows)
    relative = ratio_interval([score(row) for row in rows], matched) if whole else (math.nan, math.nan)
    kept, held, seconds = (sum(row[name] for row in rows) / len(rows) for name in ("kept", "held", "seconds"))
    return Line(model, task, policy, aim, len(rows), mean, interval, *relative, kept, held, seconds)


def _average(model: str, policy: str, aim: float, found: Sequence[Line]) -> Line:
    own = [line for line in found if (line.model, line.policy, line.aim) == (model, policy, aim)]
    usable = [line.relative for line in own if not math.isnan(line.relative)]
    relative = mean_interval(usable) if usable else (math.nan, math.nan)
    mean, interval = mean_interval([line.score for line in own])
    kept, held, seconds = (sum(getattr(line, name) for line in own) / len(own) for name in ("kept", "held", "seconds"))
    samples = sum(line.samples for line in own)
    return Line(model, AVERAGE, policy, aim, samples, mean, interval, *relative, kept, held, seconds)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


HEADINGS = ("task", "policy", "kept", "bytes", "samples", "score", "±", "of full", "±", "s a sample")


def cells(line: Line) -> tuple[str, ...]:
    """The line's texts under `HEADINGS`."""

    def number(value: float, form: str = ".3f") -> str:
        return "" if math.isnan(value) else f"{value:{form}}"

    return (
        line.task,
        line.policy,
        number(line.kept),
        number(line.held),
        str(line.samples),
        number(line.score),
        number(line.interval),
        number(line.relative),
        number(line.relative_interval),
        number(line.seconds, ".1f"),
    )


def markdown(found: Sequence[Line]) -> str:
    """The lines as Markdown tables, one for each model."""
    models = _unique(line.model for line in found)
    return "\n".join(
        f"## {model}\n\n{markdown_table(HEADINGS, [cells(line) for line in found if line.model == model])}"
        for model in models
    )
