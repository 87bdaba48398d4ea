"""The evolution itself: ask, score, tell; everything measured is written down, and resuming is replaying it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from namm.evaluation import mean_interval
from namm.evolution.config import EvolveConfig, Stage
from namm.evolution.fitness import Score, Work, fitness
from namm.evolution.samples import SampleSource
from namm.evolution.space import SPACES
from namm.evolution.strategy import make_strategy
from namm.evolution.workers import Map
from namm.memory import NAMM
from namm.support.journal import Journal
from namm.tasks import Sample

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Generation:
    """One line of a run's history.

    Attributes:
        stage, generation: where. fitness: of the population. kept: its mean kept fraction. sigma: the step size.
        validation: fitness of the mean on the validation samples, where it was measured. failed: candidates that did.
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
        scores: of each sample. fitness: of all, with the price for what is kept above the target.
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
        memory: the best mean by validation. history: see `Generation`.
        start, final: both memories on the same test samples.
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
        config: see `EvolveConfig`. memory: the start. source: of samples. map: scores samples, see `workers`.
        folder: for the journal and the result. progress: called after each sample with (generation, done, all).
        report: called with each generation, also with those that are replayed.
    """

    config: EvolveConfig
    memory: NAMM
    source: SampleSource
    map: Map
    folder: Path
    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    report: Callable[[Generation], None] = lambda generation: None
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError if the folder holds another run, OSError if it can't be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / JOURNAL)
        start = hashlib.sha256(self.memory.flat.numpy().tobytes()).hexdigest()[:16]
        identity = {"config": self.config.to_dict(), "start": start, "texts": self.source.digest()}
        identity = json.loads(json.dumps(identity))
        claim = self.journal.get("claim", lambda: identity)
        if {key: claim.get(key) for key in identity} != identity:
            raise ValueError(
                f"{self.folder} holds a run of another configuration, start or texts: choose another folder"
            )

    def run(self) -> Outcome:
        """Evolve through all stages; the result is saved in the folder."""
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
        return fitness(scores, tasks, self.config.kept, self.config.price), scores

    def _validate(self, label: str, stage: Stage, flat: Tensor) -> float:
        samples = self.source.draw(stage, "validation", self.config.validation, "validation")
        scores, tasks = self._measure(f"{label} validation", samples, flat[None])
        return fitness(scores, tasks, self.config.kept, self.config.price)[0]

    def _measure(
        self, label: str, samples: Sequence[tuple[str, Sample]], flats: Tensor
    ) -> tuple[list[list[Score]], list[str]]:
        """Scores ``[samples][population]`` from the journal or measured now, without samples that compare nothing."""
        aim = self.config.kept if self.memory.config.calibration else None
        works = [
            Work(f"{label} {index}", sample, self.config.metric, flats, aim)
            for index, (_, sample) in enumerate(samples)
        ]
        missing = [work for work in works if work.key not in self.journal.rows]
        done = len(works) - len(missing)
        self.progress(label, done, len(works))
        for key, scores in self.map(missing) if missing else ():
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


def _pack(scores: Iterable[Score] | None) -> list[list[float | str | None]] | None:
    """JSON has no infinity: a failed member's value is null."""
    if scores is None:
        return None
    return [[s.value if math.isfinite(s.value) else None, s.kept, s.error] for s in scores]


def _unpack(rows: list[list[float | str | None]] | None) -> list[Score] | None:
    if rows is None:
        return None
    return [Score(-math.inf if value is None else float(value), float(kept or 0), str(e)) for value, kept, e in rows]
