"""What a run says of itself: its generations, and what came of it on samples that nothing was chosen by."""

from __future__ import annotations

from dataclasses import dataclass

from namm.evolution.fitness import Score
from namm.memory import NAMM
from namm.support.statistics import mean_interval


@dataclass(frozen=True)
class Generation:
    """One line of a run's history.

    Attributes:
        stage: its number.
        generation: its number in the stage.
        fitness: of the population, as the search was told.
        kept: its mean kept fraction.
        sigma: the step size.
        samples: how many samples were scored, counted for every candidate.
        validation: fitness of the mean on the validation samples, where it was measured.
        failed: candidates that did.
    """

    stage: int
    generation: int
    fitness: tuple[float, ...]
    kept: float
    sigma: float
    samples: int
    validation: float | None = None
    failed: int = 0


@dataclass(frozen=True)
class Tested:
    """One memory on the test samples, which nothing was chosen by.

    Attributes:
        scores: of each sample.
        fitness: of all, with what is charged.
    """

    scores: tuple[Score, ...]
    fitness: float

    @property
    def value(self) -> float:
        """Mean over the samples; the full cache has 0 in nats, else 1."""
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
