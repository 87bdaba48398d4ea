"""Search strategies behind ask and tell; another one is one more class here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from namm.support.extras import need


class Strategy(Protocol):
    """Maximises. Deterministic for its seed and what it was told, so a log of fitnesses is a checkpoint.

    Attributes:
        mean: ``[dimensions]`` float64, the centre of the search: what a run reports.
        sigma: the step size.
    """

    @property
    def mean(self) -> np.ndarray: ...

    @property
    def sigma(self) -> float: ...

    def ask(self) -> np.ndarray:
        """``[population, dimensions]`` float64 candidates; the same ones until `tell`."""

    def tell(self, fitnesses: Sequence[float]) -> None:
        """Fitness of each candidate of the last `ask`, higher is better; minus infinity for one that failed."""


class CMAES:
    """Covariance matrix adaptation (Hansen 2016, arXiv 1604.00772), by the library `cma`.

    The paper's setting (section 4.1): population 32, elite half, sigma 0.065, the mean is reported.

    Args:
        diagonal: the separable variant: a variance for every dimension in place of the full matrix.
    """

    def __init__(self, start: np.ndarray, sigma: float, population: int, seed: int, diagonal: bool) -> None:
        cma = need("cma", "evolve")
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "popsize": population,
            "CMA_mu": population // 2,
            "CMA_diagonal": diagonal,
            "seed": math.nan,  # do not touch numpy's global generator
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -9,
            "maxiter": math.inf,
        }
        self._search = cma.CMAEvolutionStrategy(np.asarray(start, dtype=np.float64), sigma, options)
        self._asked: list[np.ndarray] | None = None

    @property
    def mean(self) -> np.ndarray:
        return np.array(self._search.mean)

    @property
    def sigma(self) -> float:
        return float(self._search.sigma)

    def ask(self) -> np.ndarray:
        if self._asked is None:
            self._asked = self._search.ask()
        return np.array(self._asked)

    def tell(self, fitnesses: Sequence[float]) -> None:
        self._search.tell(self._asked, [-fitness for fitness in finite(fitnesses)])
        self._asked = None


class SNES:
    """Separable natural evolution strategies (Schaul, Glasmachers and Schmidhuber 2011), with mirrored candidates.

    Mean and step size of every dimension follow the natural gradient of the expected rank. With few candidates it
    adapts more slowly than CMA-ES, and is misled by fewer of them.
    """

    def __init__(self, start: np.ndarray, sigma: float, population: int, seed: int) -> None:
        self.mean: np.ndarray = np.array(start, dtype=np.float64)
        self._sigmas = np.full(len(self.mean), float(sigma))
        self._rate = (3 + math.log(len(self.mean))) / (5 * math.sqrt(len(self.mean)))
        self._rng, self._population = np.random.default_rng(seed), population
        weights = np.maximum(0.0, math.log(population / 2 + 1) - np.log(np.arange(1, population + 1)))
        self._utilities = weights / weights.sum() - 1 / population  # of the best first
        self._steps: np.ndarray | None = None

    @property
    def sigma(self) -> float:
        return float(np.exp(np.log(self._sigmas).mean()))

    def ask(self) -> np.ndarray:
        if self._steps is None:
            half = self._rng.standard_normal((-(-self._population // 2), len(self.mean)))
            self._steps = np.concatenate([half, -half])[: self._population]
        return self.mean + self._sigmas * self._steps

    def tell(self, fitnesses: Sequence[float]) -> None:
        assert self._steps is not None
        steps = self._steps[np.argsort(-np.array(finite(fitnesses)), kind="stable")]
        self.mean = self.mean + self._sigmas * (self._utilities @ steps)
        self._sigmas = self._sigmas * np.exp(self._rate / 2 * (self._utilities @ (steps**2 - 1)))
        self._steps = None


class RandomSearch:
    """Normal perturbations of the start; the mean is the candidate of the best fitness so far. For comparison."""

    def __init__(self, start: np.ndarray, sigma: float, population: int, seed: int) -> None:
        self._start, self._population = np.asarray(start, dtype=np.float64), population
        self._rng = np.random.default_rng(seed)
        self.mean: np.ndarray = self._start.copy()
        self.sigma = sigma
        self._best = -math.inf
        self._asked: np.ndarray | None = None

    def ask(self) -> np.ndarray:
        if self._asked is None:
            steps = self._rng.standard_normal((self._population, len(self._start)))
            self._asked = self._start + self.sigma * steps
        return self._asked

    def tell(self, fitnesses: Sequence[float]) -> None:
        best = int(np.argmax(fitnesses))
        if self._asked is not None and fitnesses[best] > self._best:
            self._best, self.mean = fitnesses[best], self._asked[best]
        self._asked = None


STRATEGIES = ("cma", "cma-separable", "snes", "random")


def make_strategy(name: str, start: np.ndarray, sigma: float, population: int, seed: int) -> Strategy:
    """A strategy of `STRATEGIES` by its name.

    Raises:
        ValueError: for another name, or a population below 2.
    """
    if population < 2:
        raise ValueError(f"a population of {population} can't be compared; it must be at least 2")
    if name in ("snes", "random"):
        return (SNES if name == "snes" else RandomSearch)(start, sigma, population, seed)
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}: choose {', '.join(STRATEGIES)}")
    return CMAES(start, sigma, population, seed, diagonal=name == "cma-separable")


def finite(fitnesses: Sequence[float]) -> list[float]:
    """The fitnesses with those of failed candidates set below the worst of the others."""
    good = [fitness for fitness in fitnesses if math.isfinite(fitness)]
    worst = min(good, default=0.0) - 1.0
    return [fitness if math.isfinite(fitness) else worst for fitness in fitnesses]
