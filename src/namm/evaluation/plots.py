"""Pictures of an evaluation: score against what is kept, and the needle's grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from namm.evaluation.table import AVERAGE, Line, score
from namm.support.journal import Row
from namm.support.plotting import pyplot

_MARKERS = "osD^vPX*"


def plot_scores(found: Sequence[Line], path: Path) -> None:
    """For each policy the score, relative to the full cache, against the fraction kept; a panel for each task."""
    plots = pyplot()
    tasks = list(dict.fromkeys(line.task for line in found))
    tasks.sort(key=lambda task: task != AVERAGE)
    columns = min(3, len(tasks))
    height = -(-len(tasks) // columns)
    size = (4.2 * columns, 3.2 * height + 0.5)
    figure, axes = plots.subplots(height, columns, figsize=size, squeeze=False, layout="constrained")
    policies = list(dict.fromkeys((line.model, line.policy) for line in found))
    several = len({model for model, _ in policies}) > 1
    for panel, task in zip(axes.flat, tasks, strict=False):
        for index, (model, policy) in enumerate(policies):
            chosen = [line for line in found if (line.model, line.policy, line.task) == (model, policy, task)]
            own = sorted((line.kept, line.relative) for line in chosen)
            name = f"{policy}, {model}" if several else policy
            if policy == "full":
                panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":", label=name)
            elif own:
                width = 2.2 if policy == "namm" else 1.2
                panel.plot(*zip(*own, strict=True), marker=_MARKERS[index % len(_MARKERS)], linewidth=width, label=name)
        panel.set_title(task, fontsize=9)
        panel.set_xlabel("kept, of all tokens")
        panel.set_ylabel("score, of the full cache's")
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
    for panel in list(axes.flat)[len(tasks) :]:
        panel.axis("off")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)
    plots.close(figure)


def plot_grid(rows: Sequence[Row], path: Path) -> bool:
    """Heat maps of the score by depth and length, one for each policy and budget; False if no row has a place."""
    placed = [row for row in rows if row["place"]]
    if not placed:
        return False
    plots = pyplot()
    settings = list(dict.fromkeys((row["policy"], row["aim"]) for row in placed))
    depths, lengths = (sorted({row["place"][name] for row in placed}) for name in ("depth", "length"))
    columns = min(4, len(settings))
    height = -(-len(settings) // columns)
    figure, axes = plots.subplots(height, columns, figsize=(3.2 * columns, 3 * height), squeeze=False)
    for panel, (policy, aim) in zip(axes.flat, settings, strict=False):
        own = [row for row in placed if (row["policy"], row["aim"]) == (policy, aim)]
        values = [[_mean(own, depth, length) for length in lengths] for depth in depths]
        image = panel.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="upper")
        panel.set_xticks(range(len(lengths)), [f"{length:.0f}" for length in lengths])
        panel.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        panel.set_title(policy if policy == "full" else f"{policy}, {aim}", fontsize=9)
        panel.set_xlabel("tokens")
        panel.set_ylabel("depth")
        figure.colorbar(image, ax=panel)
    for panel in list(axes.flat)[len(settings) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plots.close(figure)
    return True


def _mean(rows: Sequence[Row], depth: float, length: float) -> float:
    scores = [score(row) for row in rows if row["place"] == {"depth": depth, "length": length}]
    return sum(scores) / len(scores) if scores else float("nan")
