"""The evolution itself: ask, score, tell; everything measured is written down, and resuming is replaying it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from namm.evolution.config import EvolveConfig, Stage
from namm.evolution.fitness import Score, Work, fitness
from namm.evolution.samples import SampleSource
from namm.evolution.space import SPACES
from namm.evolution.strategy import make_strategy
from namm.evolution.workers import Map
from namm.memory import NAMM
from namm.support.journal import Journal
from namm.support.runs import check_output, claim
from namm.support.statistics import mean_interval
from namm.tasks import Sample

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Generation:
    """One line of a run's history.

    Attributes:
        stage: its number.
        generation: its number in the stage.
        fitness: of the population.
        kept: its mean kept fraction.
        sigma: the step size.
        validation: fitness of the mean on the validation samples, where it was measured.
        failed: candidates that did.
    """

    stage: int
    generation: int
    fitness: tuple[float, ...]
    kept: float
    sigma: float
    validation: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class Tested:
    """One memory on the test samples, which nothing was chosen by.

    Attributes:
        scores: of each sample.
        fitness: of all, with the price for what is kept above the target.
    """

    scores: tuple[Score, ...]
    fitness: float

    @property
    def value(self) -> float:
        """Mean over the samples; 1.0 is as good as the full cache."""
        return sum(score.value for score in self.scores) / len(self.scores)

    @property
    def kept(self) -> float:
        """Mean kept fraction."""
        return sum(score.kept for score in self.scores) / len(self.scores)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        memory: the best mean by validation.
        history: see `Generation`.
        start: the start on the test samples.
        final: `memory` on the same test samples.
        validation: of each stage the fitness of its start and of its best mean.
    """

    memory: NAMM
    history: tuple[Generation, ...]
    start: Tested
    final: Tested
    validation: tuple[tuple[float, float], ...]

    @property
    def gain(self) -> tuple[float, float]:
        """Mean difference of the test samples' values, and half its 95% interval."""
        pairs = zip(self.start.scores, self.final.scores, strict=True)
        return mean_interval([new.value - old.value for old, new in pairs])


@dataclass
class Evolution:
    """A run in a folder; made again with the same arguments, it goes on where it stopped.

    Attributes:
        config: see `EvolveConfig`.
        memory: the start.
        source: of samples.
        map: scores samples, see `workers`.
        folder: for the journal and the result.
        progress: called after each sample with (generation, done, all).
        report: called with each generation, also with those that are replayed.
        model: fingerprint of the model that scores, see `namm.support.fingerprints`.
    """

    config: EvolveConfig
    memory: NAMM
    source: SampleSource
    map: Map
    folder: Path
    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    report: Callable[[Generation], None] = lambda generation: None
    model: str = field(kw_only=True)

    def __post_init__(self) -> None:
        """Raises ValueError if the folder is no place for this run."""
        check_output(self.folder, inputs=self.config.inputs())

    def run(self) -> Outcome:
        """Evolve through all stages; the result is saved in the folder.

        Raises:
            ValueError: if the folder holds another run, another process is at work in it, or all candidates of a
                generation failed.
            OSError: if the folder can't be written.
        """
        settings = {key: value for key, value in self.config.to_dict().items() if key not in ("model", "start", "text")}
        depends = {
            "settings": settings,
            "model": self.model,
            "start": self.memory.fingerprint(),
            "texts": self.source.digest(),
        }
        with claim(self.folder, "evolution", depends), Journal(self.folder / JOURNAL) as self.journal:
            return self._run()

    def _run(self) -> Outcome:
        current, history, validation = self.memory, [], []
        for number, stage in enumerate(self.config.stages):
            current, generations, fitnesses = self._stage(number, stage, current)
            history += generations
            validation.append(fitnesses)
        last = self.config.stages[-1]
        samples = self.source.draw(last, "test", self.config.test, "test")
        flats = torch.stack([self.memory.flat, current.flat])
        scores, tasks = self._measure("test", samples, flats)
        total = fitness(scores, tasks, self.config.kept, self.config.price)
        own = [Tested(tuple(row), value) for row, value in zip(zip(*scores, strict=True), total, strict=True)]
        outcome = Outcome(current, tuple(history), start=own[0], final=own[1], validation=tuple(validation))
        current.save_pretrained(self.folder)
        return outcome

    def _stage(self, number: int, stage: Stage, start: NAMM) -> tuple[NAMM, list[Generation], tuple[float, float]]:
        """The best mean by validation, what was done, and the validation fitness of the start and of the best."""
        config = self.config
        space = SPACES[config.parameters](start)
        seed = config.seed * 1000 + number
        strategy = make_strategy(config.strategy, np.zeros(space.dimensions), config.sigma, config.population, seed)
        first = self._validate(f"s{number} start", stage, start.flat)
        best, best_flat, waited = first, start.flat, 0
        history: list[Generation] = []
        for index in range(stage.generations):
            label = f"s{number} g{index}"
            values, scores = self._generation(label, stage, space.flat(strategy.ask()))
            strategy.tell(values)
            kept = float(np.mean([score.kept for row in scores for score in row]))
            failed = sum(not math.isfinite(value) for value in values)
            done = Generation(number, index, tuple(values), kept, strategy.sigma, failed=failed)
            if (index + 1) % config.validate_every == 0 or index + 1 == stage.generations:
                flat = space.flat(strategy.mean[None])[0]
                value = self._validate(label, stage, flat)
                done = replace(done, validation=value)
                best, best_flat, waited = (value, flat, 0) if value > best else (best, best_flat, waited + 1)
            history.append(done)
            self.report(done)
            if config.patience and waited >= config.patience:
                break
        return replace(start, flat=best_flat), history, (first, best)

    def _generation(self, label: str, stage: Stage, flats: Tensor) -> tuple[list[float], list[list[Score]]]:
        samples = self.source.draw(stage, "train", stage.samples, label)
        scores, tasks = self._measure(label, samples, flats)
        values = fitness(scores, tasks, self.config.kept, self.config.price)
        if not any(map(math.isfinite, values)):
            raise _failure(label, [score for row in scores for score in row])
        return values, scores

    def _validate(self, label: str, stage: Stage, flat: Tensor) -> float:
        samples = self.source.draw(stage, "validation", self.config.validation, "validation")
        scores, tasks = self._measure(f"{label} validation", samples, flat[None])
        return fitness(scores, tasks, self.config.kept, self.config.price)[0]

    def _measure(
        self, label: str, samples: Sequence[tuple[str, Sample]], flats: Tensor
    ) -> tuple[list[list[Score]], list[str]]:
        """Scores ``[samples][population]`` from the journal or measured now, without samples that compare nothing."""
        aim = None if self.memory.config.kept is None else self.config.kept
        works = [
            Work(f"{label} {index}", sample, self.config.metric, flats, aim)
            for index, (_, sample) in enumerate(samples)
        ]
        missing = [work for work in works if work.key not in self.journal.rows]
        done = len(works) - len(missing)
        self.progress(label, done, len(works))
        for key, scores in self.map(missing) if missing else ():
            if scores and len(scores) > 1 and not any(math.isfinite(score.value) for score in scores):
                raise _failure(label, scores)  # not written down: what failed for want of memory may be tried again
            self.journal.add(key, {"scores": _pack(scores)})
            done += 1
            self.progress(label, done, len(works))
        found = [
            (_unpack(self.journal.rows[w.key]["scores"]), task) for w, (task, _) in zip(works, samples, strict=True)
        ]
        usable = [(scores, task) for scores, task in found if scores is not None]
        if not usable:
            raise ValueError(f"{label}: the full cache answers no sample; choose easier tasks or metric = 'likelihood'")
        return [scores for scores, _ in usable], [task for _, task in usable]


def _failure(label: str, scores: Sequence[Score]) -> ValueError:
    reasons = Counter(score.error for score in scores if score.error)
    reason = reasons.most_common(1)[0][0] if reasons else "no reason is known"
    return ValueError(
        f"{label}: all candidates failed ({reason}): try a smaller sigma or population, shorter texts or float32"
    )


def _pack(scores: Iterable[Score] | None) -> list[list[float | str | None]] | None:
    """JSON has no infinity: a failed member's value is null."""
    if scores is None:
        return None
    return [[s.value if math.isfinite(s.value) else None, s.kept, s.error] for s in scores]


def _unpack(rows: list[list[float | str | None]] | None) -> list[Score] | None:
    if rows is None:
        return None
    return [Score(-math.inf if value is None else float(value), float(kept or 0), str(e)) for value, kept, e in rows]
