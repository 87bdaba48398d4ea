"""What a run leaves to look at: TensorBoard events, a plot, a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from namm.evolution.config import EvolveConfig
from namm.evolution.objective import NATS, of_full_cache
from namm.evolution.outcome import Generation, Outcome, Tested
from namm.support.plotting import pyplot


def write_events(history: Sequence[Generation], folder: Path) -> None:
    """TensorBoard events of a whole run (fitness, kept fraction, sigma, validation), replacing older ones."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for step, generation in enumerate(history):
            good = finite_fitness(generation)
            values = {
                "fitness/mean": sum(good) / len(good) if good else None,
                "fitness/best": max(good, default=None),
                "kept": generation.kept,
                "sigma": generation.sigma,
                "failed": generation.failed,
                "validation": generation.validation,
            }
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(name, value, step)


def plot(outcome: Outcome, config: EvolveConfig, path: Path) -> None:
    """Fitness of the population and of the mean on validation, and what was kept, as PNG."""
    plots = pyplot()
    figure, (top, bottom) = plots.subplots(2, 1, sharex=True, figsize=(7, 6), height_ratios=(3, 1))
    steps = range(1, len(outcome.history) + 1)
    good = [finite_fitness(generation) or [math.nan] for generation in outcome.history]
    top.fill_between(steps, [min(g) for g in good], [max(g) for g in good], alpha=0.2, label="population, training")
    top.plot(steps, [sum(g) / len(g) for g in good], label="its mean")
    checked = [(step, g.validation) for step, g in zip(steps, outcome.history, strict=True) if g.validation is not None]
    top.plot(*zip(*checked, strict=True), "o-", color="black", label="mean of the search, validation")
    top.set_ylabel(f"fitness ({of_full_cache(config.metric):g} = full cache)")
    top.legend()
    bottom.plot(steps, [generation.kept for generation in outcome.history], label="kept")
    bottom.axhline(config.kept, linestyle="--", color="gray", label="target")
    bottom.set_ylabel("kept fraction")
    bottom.set_xlabel("generation")
    bottom.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plots.close(figure)


def finite_fitness(generation: Generation) -> list[float]:
    """Of the candidates that did not fail."""
    return [value for value in generation.fitness if math.isfinite(value)]


def card(outcome: Outcome, config: EvolveConfig, texts: str) -> str:
    """A model card with what the run itself measured."""
    gain, spread = outcome.gain
    count = len(outcome.final.scores)
    evaluations = sum(len(generation.fitness) for generation in outcome.history)
    scored = sum(generation.samples for generation in outcome.history)
    moved = f'"{config.parameters}"' + (f" towards {config.towards}" if config.towards else "")
    stages = "\n".join(
        f"| {number} | {', '.join(stage.tasks)} | {', '.join(map(str, stage.tokens))} | {stage.samples} |"
        for number, stage in enumerate(config.stages)
    )

    floor = f", and what running text loses beyond {config.tolerance} nats a token" if config.metric == NATS else ""
    best = of_full_cache(config.metric)

    def line(name: str, tested: Tested) -> str:
        return f"| {name} | {tested.value:.3f} | {tested.kept:.3f} | {tested.fitness:.3f} |"

    return f"""# An evolved memory

Evolved on {", ".join(config.models)} from {config.start} with `namm evolve`: {config.strategy}, parameters {moved},
population {config.population}, sigma {config.sigma}, {len(outcome.history)} generations, {evaluations} candidates in
{config.rounds} rounds each, {scored} samples scored for one of them, seed {config.seed}. Texts: {texts}.

| stage | tasks | tokens | samples of each task |
| --- | --- | --- | --- |
{stages}

On {count} samples of the test split, which nothing was chosen by (score: {config.metric}, {best:g} = full cache;
fitness: the same by model and task, less {config.price} for each unit kept above {config.kept}{floor}):

| memory | score | kept | fitness |
| --- | --- | --- | --- |
{line("start", outcome.start)}
{line("evolved", outcome.final)}

Difference of the scores {gain:+.3f} ± {spread:.3f} (95%, paired).
"""
