"""Tables of what is learned: evolution beside random search, populations, and what each feature is worth."""

from __future__ import annotations

import statistics
from collections import defaultdict

from tables import Row, interval, mean, middle, select, unique

from namm.evolution.objective import RUNNING_TEXT
from namm.support.plotting import markdown_table


def search_table(found: Row) -> str:
    """By strategy: gain on unseen tasks and the loss of running text of start and result, ± over seeds."""
    rows = found["rows"]
    gains = {(row["strategy"], row["seed"]): _unseen_gain(row["judged"]) for row in rows}
    first, lines = rows[0]["strategy"], []
    for strategy in unique(rows, "strategy"):
        own = select(rows, strategy=strategy)
        counts = "/".join(f"{count:,}" for count in unique(own, "candidate_samples"))
        before, after = ([_rise(row["judged"], end) for row in own] for end in ("start", "final"))
        rises = [new - old for old, new in zip(before, after, strict=True)]
        kept = [statistics.mean(one[end]["kept"] for row in own for one in row["judged"]) for end in ("start", "final")]
        seeds = [seed for name, seed in gains if name == strategy and (first, seed) in gains]
        less = [gains[first, seed] - gains[strategy, seed] for seed in seeds]
        ahead = "" if strategy == first else interval(less, "+.3f")
        cells = (interval([gains[strategy, row["seed"]] for row in own], "+.3f"), ahead)
        losses = (interval(before, "+.4f"), interval(after, "+.4f"), interval(rises, "+.4f"))
        lines.append((strategy, counts, str(len(own)), "/".join(f"{one:.3f}" for one in kept), *cells, *losses))
    headings = ("search", "samples x candidates", "n", "kept before/after", "gain on unseen tasks, nats")
    losses = ("rise in loss before", "after", "difference")
    return markdown_table((*headings, f"{first} ahead by", *losses), lines)


def beside_rules_table(found: Row) -> str:
    """By task what start, result and rules score, all samples of all seeds together; empty without rules."""
    first = found["rows"][0]["judged"][0]
    names = [name for name, one in first.items() if isinstance(one, dict)]
    if names == ["start", "final"]:
        return ""
    lines = []
    for strategy in unique(found["rows"], "strategy"):
        judged = [one for row in select(found["rows"], strategy=strategy) for one in row["judged"]]
        for task in sorted(unique(judged, "task"), key=lambda task: not select(judged, task=task)[0]["own"]):
            own = select(judged, task=task)
            told = f"{task.replace('_', ' ')}{', own' if own[0]['own'] else ''}"
            values = [[one[name]["value"] for one in own] for name in names]
            ahead = [[one["final"]["value"] - one[name]["value"] for one in own] for name in names[2:]]
            lines.append((strategy, told, str(len(own)), *(interval(each, "+.2f") for each in [*values, *ahead])))
    return markdown_table(("search", "task", "n", *names, *(f"final less {name}" for name in names[2:])), lines)


def _unseen_gain(judged: list[Row]) -> float:
    """Mean over models of the mean over tasks of what the result scores above the start, nats a token."""
    own = [row for row in judged if row["task"] != RUNNING_TEXT and not row.get("own")]

    def of(model: str, task: str) -> float:
        return statistics.mean(
            row["final"]["value"] - row["start"]["value"] for row in select(own, model=model, task=task)
        )

    models = unique(own, "model")
    return statistics.mean(
        statistics.mean(of(model, task) for task in unique(select(own, model=model), "task")) for model in models
    )


def _rise(judged: list[Row], end: str) -> float:
    """Rise in loss of running text over the full cache's, nats a token, mean over models of the mean over texts."""
    own = select(judged, task=RUNNING_TEXT)
    return statistics.mean(
        statistics.mean(-row[end]["value"] for row in select(own, model=model)) for model in unique(own, "model")
    )


def population_table(found: Row) -> str:
    rows = found["rows"]
    lines = []
    for tokens in unique(rows, "tokens"):
        own = select(rows, tokens=tokens)
        count = own[0]["population"]
        rates = [[count / row[f"{way}_seconds"] for row in own] for way in ("one_by_one", "shared")]
        ratios = [row["one_by_one_seconds"] / row["shared_seconds"] for row in own]
        lines.append((f"{tokens:,}", str(count), str(len(own)), *map(middle, rates), middle(ratios)))
    headings = ("tokens", "candidates", "n", "a second, one by one", "a second, read once", "times as fast")
    return markdown_table(headings, lines)


def ablation_table(found: Row) -> str:
    """By model and variant: the mean over passages with its interval over seeds, and the difference to the first
    variant, of each passage the mean over seeds, with its interval over passages."""
    rows = found["rows"]
    judged = [
        {"variant": row["variant"], "seed": row["seed"]} | {"name": f"{number} {one['passage']}"} | one
        for row in rows
        for number, one in enumerate(row["judged"])
    ]
    fractions = unique(judged, "kept")

    def by_passage(model: str, variant: str) -> dict[str, float]:
        own: dict[str, list[float]] = defaultdict(list)
        for row in select(judged, model=model, variant=variant, kept=fractions[-1]):
            own[row["name"]].append(row["influence"])
        return {name: statistics.mean(values) for name, values in own.items()}

    lines = []
    for model in unique(judged, "model"):
        first = by_passage(model, rows[0]["variant"])
        for variant in unique(rows, "variant"):
            (parameters, state), *_ = {(row["parameters"], row["state_bytes"]) for row in select(rows, variant=variant)}
            line = [model, variant, f"{parameters:,}", str(state)]
            for fraction in fractions:
                own = select(judged, model=model, variant=variant, kept=fraction)
                seeds = [mean(select(own, seed=seed), "influence") for seed in unique(own, "seed")]
                line += [interval(seeds, ".3f"), f"{mean(own, 'top_5'):.3f}", f"{mean(own, 'top_1'):.3f}"]
            differences = [value - first[name] for name, value in by_passage(model, variant).items()]
            lines.append((*line, "" if variant == rows[0]["variant"] else interval(differences, "+.3f")))
    headings = ["model", "variant", "parameters", "bytes"]
    for fraction in fractions:
        headings += [f"influence held at {fraction:g}", "of top 5%", "of top 1%"]
    return markdown_table((*headings, f"influence at {fractions[-1]:g}, less {rows[0]['variant']}"), lines)
