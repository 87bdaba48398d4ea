"""Tables of what is learned: evolution beside random search, populations, and what each feature is worth."""

from __future__ import annotations

import statistics
from collections import defaultdict

from tables import Row, interval, mean, middle, select, unique

from namm.support.plotting import markdown_table


def search_table(found: Row) -> str:
    rows = found["rows"]
    lines = []
    for strategy in unique(rows, "strategy"):
        own = select(rows, strategy=strategy)
        start, final = ([row[end]["fitness"] for row in own] for end in ("start", "final"))
        gains = [after - before for before, after in zip(start, final, strict=True)]
        counts = "/".join(str(count) for count in unique(own, "candidates"))
        cells = (interval(start, ".3f"), interval(final, ".3f"), interval(gains, "+.3f"))
        lines.append((strategy, counts, str(len(own)), *cells))
    return markdown_table(("search", "candidates", "n", "fitness before", "fitness after", "gain"), lines)


def population_table(found: Row) -> str:
    rows = found["rows"]
    lines = []
    for tokens in unique(rows, "tokens"):
        own = select(rows, tokens=tokens)
        ratios = [row["one_by_one_seconds"] / row["batched_seconds"] for row in own]
        lines.append((f"{tokens:,}", str(own[0]["population"]), str(len(own)), middle(ratios)))
    return markdown_table(("tokens", "members", "n", "times as fast in one batch, median and range"), lines)


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
