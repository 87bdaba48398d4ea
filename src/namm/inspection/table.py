"""How much of each class of tokens a policy keeps, against what it keeps on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from namm.inspection.classes import CODE_CLASSES, PROSE_CLASSES
from namm.inspection.trace import Inspection
from namm.support.plotting import pyplot
from namm.support.statistics import mean_interval
from namm.tasks.documents import Kind

FEWEST = 5  # tokens of a class that a unit must be expected to keep, to count


@dataclass(frozen=True)
class ClassShare:
    """One class of tokens under one policy.

    Attributes:
        kind: of text.
        name: of the class.
        tokens: how many were found.
        share: of all tokens of this kind of text.
        kept: fraction kept of them in the end, mean over layers and heads.
        relative: kept over what is kept on average of tokens of the same update's block (and so of the same age), mean
            over units; NaN where too few are expected to keep `FEWEST` of them. A unit is a text, or a block where
            there is only one text.
        interval: half the 95% interval of `relative`; NaN likewise.
        units: how many counted.
    """

    policy: str
    kind: Kind
    name: str
    tokens: int
    share: float
    kept: float
    relative: float
    interval: float
    units: int


def class_shares(found: Sequence[tuple[Inspection, Sequence[str]]], kind: Kind) -> list[ClassShare]:
    """A line for each class that occurs.

    Args:
        found: texts of one kind under one policy, and the classes of their tokens (`token_classes`).
    """
    blocks = [_blocks(inspection, np.array(classes)) for inspection, classes in found]
    units = blocks[0] if len(blocks) == 1 else [_joined(own) for own in blocks]
    every = sum(len(kept) for kept, _, _ in units)
    lines = []
    for name in CODE_CLASSES if kind == "code" else PROSE_CLASSES:
        chosen = [(kept[classes == name], expected[classes == name]) for kept, expected, classes in units]
        tokens = sum(len(kept) for kept, _ in chosen)
        if not tokens:
            continue
        ratios = [kept.sum() / expected.sum() for kept, expected in chosen if expected.sum() >= FEWEST]
        relative, interval = mean_interval(ratios) if ratios else (math.nan, math.nan)
        kept_share = float(np.concatenate([kept for kept, _ in chosen]).mean())
        policy = found[0][0].name
        lines.append(
            ClassShare(policy, kind, name, tokens, tokens / every, kept_share, relative, interval, len(ratios))
        )
    return lines


Unit = tuple[np.ndarray, np.ndarray, np.ndarray]  # of each token: share of heads, expected share, class


def _blocks(inspection: Inspection, classes: np.ndarray) -> list[Unit]:
    """The tokens of each update's block; expected of a token is what is kept of its block."""
    kept = inspection.kept()
    bounds = (0, *inspection.updates)
    return [
        (kept[start:end], np.full(end - start, kept[start:end].mean()), classes[start:end])
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]


def _joined(units: Sequence[Unit]) -> Unit:
    kept, expected, classes = (np.concatenate(parts) for parts in zip(*units, strict=True))
    return kept, expected, classes


HEADINGS = ("class", "policy", "tokens", "of all", "kept", "of the average", "units")


def cells(line: ClassShare) -> tuple[str, ...]:
    """A line as text, one cell for each of `HEADINGS`."""
    relative = "" if math.isnan(line.relative) else f"{line.relative:.2f}"
    if not math.isnan(line.interval):
        relative += f" ± {line.interval:.2f}"
    return (
        line.name,
        line.policy,
        str(line.tokens),
        f"{line.share:.3f}",
        f"{line.kept:.3f}",
        relative,
        str(line.units),
    )


def plot_classes(lines: Sequence[ClassShare], path: Path) -> None:
    """Bars of what is kept of each class relative to the average, with intervals; a panel for each kind of text."""
    plots = pyplot()
    kinds = list(dict.fromkeys(line.kind for line in lines))
    policies = list(dict.fromkeys(line.policy for line in lines))
    figure, axes = plots.subplots(1, len(kinds), figsize=(5.2 * len(kinds), 4.2), squeeze=False, layout="constrained")
    for panel, kind in zip(axes.flat, kinds, strict=True):
        names = list(dict.fromkeys(line.name for line in lines if line.kind == kind))
        height = 0.8 / len(policies)
        for number, policy in enumerate(policies):
            own = {line.name: line for line in lines if line.kind == kind and line.policy == policy}
            places = [names.index(name) + (number - (len(policies) - 1) / 2) * height for name in own]
            panel.barh(
                places,
                [line.relative for line in own.values()],
                height,
                xerr=[0 if math.isnan(line.interval) else line.interval for line in own.values()],
                label=policy,
                color=plots.get_cmap("cividis")((number + 0.5) / len(policies)),
                error_kw={"linewidth": 1},
            )
        panel.axvline(1.0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.set_title(kind)
        panel.set_xlabel("kept, of the average of tokens of the same age")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)
    plots.close(figure)
