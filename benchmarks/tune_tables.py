"""Tables of models that learn beside their memory."""

from __future__ import annotations

import statistics
from collections import defaultdict

from tables import Row, interval, mean, middle, select, unique

from namm.support.plotting import markdown_table

MIB = 2**20
CLAIMS = (  # of whom at which kept fraction, less whom at which
    (("memory", None), ("full", None)),
    (("memory", None), ("full", 1.0)),
    (("full", None), ("base", None)),
)


def step_table(found: Row) -> str:
    """Seconds and bytes of a step, and what they are of a full-cache step's: seconds by repetition."""
    rows = found["rows"]
    lines = []
    for tokens in unique(rows, "tokens"):
        (full,) = select(rows, tokens=tokens, kind="full", repeat=0)
        seconds_full = {
            row["repeat"]: row["seconds"] for row in select(rows, tokens=tokens, kind="full") if row["repeat"]
        }
        for kind in unique(rows, "kind"):
            (size,) = select(rows, tokens=tokens, kind=kind, repeat=0)
            timed = [row for row in select(rows, tokens=tokens, kind=kind) if row["repeat"]]
            ratios = [row["seconds"] / seconds_full[row["repeat"]] for row in timed]
            times = [middle([row["seconds"] for row in timed], ".1f"), middle(ratios)] if timed else ["", ""]
            line = [f"{tokens:,}", kind, str(len(timed)), *times]
            for name in ("held_bytes", "peak_bytes"):
                line += [f"{size[name] / MIB:,.0f}", f"{size[name] / full[name]:.2f}"]
            lines.append(tuple(line))
    sizes = ("MiB held after forward", "times full", "MiB at most", "times full")
    return markdown_table(("tokens", "cache", "n", "seconds", "times full", *sizes), lines)


def learned_table(found: Row) -> str:
    """Right answers and log-probability by how the model learned and what it keeps when asked: of each context the mean
    over seeds and questions, ± over contexts."""
    rows = found["rows"]
    lines = []
    for learned in unique(rows, "learned"):
        for aim in unique(rows, "aim"):
            own = select(rows, learned=learned, aim=aim)
            kept = f"{mean(own, 'kept_fraction'):.3f}"
            cells = [interval(_by_context(own, name), ".3f") for name in ("correct", "log_probability")]
            tasks = [f"{mean(select(own, task=task), 'correct'):.2f}" for task in unique(rows, "task")]
            lines.append((learned, kept, str(len(unique(own, "seed"))), *cells, *tasks))
    samples = len({(row["number"], row.get("question")) for row in rows})
    tasks = [task.replace("_", " ") for task in unique(rows, "task")]
    return markdown_table(
        ("learned on", "kept when asked", "seeds", f"right ({samples})", "log-probability a token", *tasks), lines
    )


def turns_table(found: Row) -> str:
    """Right answers after each step of learning in turn, and how many more than before it, ± over contexts."""
    rows, lines = found["rows"], []
    before: dict[float, list[Row]] = {}
    for turn in unique(rows, "turn"):
        for step in unique(select(rows, turn=turn), "step"):
            line = [f"{step} {turn or ''}".rstrip()]
            for aim in unique(rows, "aim"):
                if not (own := select(rows, turn=turn, step=step, aim=aim)):  # as before
                    line += ["", ""]
                    continue
                line.append(interval(_by_context(own, "correct"), ".3f"))
                line.append(interval(_differences([own, before[aim]], "correct"), "+.3f") if aim in before else "")
                before[aim] = own
            lines.append(tuple(line))
    headings = [heading for aim in unique(rows, "aim") for heading in (f"right at {aim:g}", "more than before")]
    return markdown_table(("after", *headings), lines)


def claims_table(found: Row) -> str:
    """Differences of right answers and of log-probability, paired by context: ± over contexts, and over seeds."""
    rows = found["rows"]
    lines = []
    for aim in [aim for aim in unique(rows, "aim") if aim != 1]:
        for one, other in CLAIMS:
            sides = [select(rows, learned=learned, aim=own or aim) for learned, own in (one, other)]
            if not all(sides):
                continue
            cells = [interval(_differences(sides, name), "+.3f") for name in ("correct", "log_probability")]
            seeds = [mean(select(sides[0], seed=seed), "correct") for seed in unique(sides[0], "seed")]
            against = [mean(select(sides[1], seed=seed), "correct") for seed in unique(sides[1], "seed")]
            if len(against) == 1:
                against = against * len(seeds)
            by_seed = [mine - its for mine, its in zip(seeds, against, strict=True)]
            names = [f"{learned} at {own or aim:g}" for learned, own in (one, other)]
            lines.append((*names, *cells, interval(by_seed, "+.3f")))
    over = ("right, ± over contexts", "log-probability, ± over contexts", "right, ± over seeds")
    return markdown_table(("learned on", "less", *over), lines)


def _by_context(rows: list[Row], name: str) -> list[float]:
    """Of each context the mean over seeds and questions."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row["number"]].append(float(row[name]))
    return [statistics.mean(found[number]) for number in sorted(found)]


def _differences(sides: list[list[Row]], name: str) -> list[float]:
    ours, theirs = (_by_context(rows, name) for rows in sides)
    return [one - other for one, other in zip(ours, theirs, strict=True)]
