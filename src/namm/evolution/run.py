"""The evolution itself: ask, score, tell; everything measured is written down, and resuming is replaying it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from namm.evolution.config import EvolveConfig, Stage
from namm.evolution.directions import along, directions, spreads, way
from namm.evolution.fitness import Result, fitness
from namm.evolution.measure import Measure, failure
from namm.evolution.outcome import Generation, Outcome, Tested
from namm.evolution.race import better_half, ranked
from namm.evolution.samples import Drawn, SampleSource, draw_for_all
from namm.evolution.space import DIRECTIONS, SPACES, WAY, Space
from namm.evolution.strategy import make_strategy
from namm.evolution.workers import Map
from namm.memory import NAMM
from namm.support.journal import Journal
from namm.support.runs import check_output, claim

JOURNAL = "journal.jsonl"
ELSEWHERE = ("models", "start", "towards", "text")  # settings that a run depends on by their contents, not their names


@dataclass
class Evolution:
    """A run in a folder; made again with the same arguments, it goes on where it stopped.

    Attributes:
        config: see `EvolveConfig`.
        memory: the start.
        sources: of samples, by the names of the models.
        map: scores samples, see `workers`.
        folder: for the journal and the result.
        progress: called after each sample with (generation, done, all).
        report: called with each generation, also with those that are replayed.
        models: fingerprints of the models that score, by their names, see `namm.support.fingerprints`.
        record: features of some heads that read a sample, see `recorded_heads`; for the space ``"directions"``.
    """

    config: EvolveConfig
    memory: NAMM
    sources: Mapping[str, SampleSource]
    map: Map
    folder: Path
    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    report: Callable[[Generation], None] = lambda generation: None
    models: Mapping[str, str] = field(kw_only=True)
    record: Callable[[Drawn], Sequence[Tensor]] = field(kw_only=True)

    def __post_init__(self) -> None:
        """Raises ValueError if the folder is no place for this run, MemoryFileError if `towards` can't be read."""
        check_output(self.folder, inputs=self.config.inputs())
        self.towards = NAMM.from_pretrained(self.config.towards) if self.config.towards else None

    def run(self) -> Outcome:
        """Evolve through all stages; the result is saved in the folder.

        Raises:
            ValueError: if the folder holds another run, another process is at work in it, or all candidates of a
                generation failed.
            OSError: if the folder can't be written.
        """
        depends = {
            "settings": {key: value for key, value in self.config.to_dict().items() if key not in ELSEWHERE},
            "models": [self.models[name] for name in self.config.models],
            "start": self.memory.fingerprint(),
            "towards": None if self.towards is None else self.towards.fingerprint(),
            "texts": [self.sources[name].digest() for name in self.config.models],
        }
        with claim(self.folder, "evolution", depends), Journal(self.folder / JOURNAL) as self.journal:
            self.measure = Measure(self.config, self.memory, self.map, self.journal, self.progress)
            return self._run()

    def _run(self) -> Outcome:
        current, history, validation = self.memory, [], []
        for number, stage in enumerate(self.config.stages):
            current, generations, fitnesses = self._stage(number, stage, current)
            history += generations
            validation.append(fitnesses)
        drawn = draw_for_all(self.sources, self.config.stages[-1], "test", self.config.test, "test")
        both = _usable("test", self.measure.results("test", drawn, torch.stack([self.memory.flat, current.flat])))
        start, final = (Tested(tuple(one.score for one in own), fitness(own, self.config)) for own in both)
        outcome = Outcome(current, tuple(history), start, final, tuple(validation))
        current.save_pretrained(self.folder)
        return outcome

    def _stage(self, number: int, stage: Stage, start: NAMM) -> tuple[NAMM, list[Generation], tuple[float, float]]:
        """The best mean by validation, what was done, and the validation fitness of the start and of the best."""
        config = self.config
        space = self._space(number, stage, start)
        seed = config.seed * 1000 + number
        strategy = make_strategy(config.strategy, np.zeros(space.dimensions), config.sigma, config.population, seed)
        first = self._validate(f"s{number} start", stage, start.flat)
        best, best_flat, waited = first, start.flat, 0
        history: list[Generation] = []
        for index in range(stage.generations):
            label = f"s{number} g{index}"
            told, results = self._generation(label, stage, space.flat(strategy.ask()))
            strategy.tell(told)
            kept = mean(one.score.kept for own in results for one in own)
            counts = {"samples": sum(map(len, results)), "failed": sum(not math.isfinite(value) for value in told)}
            done = Generation(number, index, tuple(told), kept, strategy.sigma, **counts)
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

    def _space(self, number: int, stage: Stage, start: NAMM) -> Space:
        """What is measured of directions is written down, since another machine would find the last bits otherwise."""
        if self.config.parameters == WAY and self.towards is not None:
            return way(start, self.towards)
        if self.config.parameters != DIRECTIONS:
            return SPACES[self.config.parameters](start)
        ways = directions(start, self.towards)

        def measure() -> dict[str, list[float]]:
            drawn = draw_for_all(self.sources, stage, "train", 1, "directions")
            first = {one.model: one for one in reversed(drawn)}
            return {"spreads": spreads(start, ways, [head for one in first.values() for head in self.record(one)])}

        return along(start, ways, self.journal.get(f"s{number} directions", measure)["spreads"])

    def _generation(self, label: str, stage: Stage, flats: Tensor) -> tuple[list[float], list[list[Result]]]:
        """Fitnesses as the search is told, and what was measured of each candidate, the same samples for all.

        After each round but the last the worse half of the candidates is dropped.
        """
        drawn = draw_for_all(self.sources, stage, "train", stage.samples, label)
        results: list[list[Result]] = [[] for _ in flats]
        values, rounds, running = [0.0] * len(flats), [0] * len(flats), list(range(len(flats)))
        for number in range(self.config.rounds):
            part = [one for one in drawn if one.number % self.config.rounds == number]
            running = running if number == 0 else better_half(running, values)
            found = self.measure.results(label, part, flats[running], spared=number > 0)
            for candidate, own in zip(running, found, strict=True):
                results[candidate] += own
                values[candidate], rounds[candidate] = fitness(results[candidate], self.config), number + 1
        if not any(map(math.isfinite, values)):
            raise failure(label, [one.score for own in results for one in own])
        return ranked(values, rounds), results

    def _validate(self, label: str, stage: Stage, flat: Tensor) -> float:
        drawn = draw_for_all(self.sources, stage, "validation", self.config.validation, "validation")
        (own,) = _usable(label, self.measure.results(f"{label} validation", drawn, flat[None]))
        return fitness(own, self.config)


def _usable(label: str, results: list[list[Result]]) -> list[list[Result]]:
    if not results[0]:
        raise ValueError(f"{label}: the full cache answers no sample; choose easier tasks or metric = 'nats'")
    return results
