"""Successive halving within a generation: weak candidates are seen on few samples (Karnin et al. 2013; Jamieson and
Talwalkar 2016, arXiv 1502.07943)."""

from __future__ import annotations

import math
from collections.abc import Sequence

GAP = 1e-3  # of fitness, between candidates that were dropped and those that went on


def better_half(running: Sequence[int], values: Sequence[float]) -> list[int]:
    """Of the running candidates' numbers the better half, rounded up, in their old order; of equals the first."""
    ranked = sorted(running, key=lambda number: -values[number])
    return sorted(ranked[: -(-len(running) // 2)])


def ranked(values: Sequence[float], rounds: Sequence[int]) -> list[float]:
    """Fitnesses by which none that was dropped is as good as one that went on; minus infinity stays.

    Those of one round keep their order and their distances, and those that went on to the end their values.

    Args:
        values: of each candidate, over the samples that it saw.
        rounds: of each candidate, how many it was in.

    >>> ranked([1.0, 3.0, 2.0], [2, 1, 2])
    [1.0, 0.999, 2.0]
    """
    told, ceiling = list(values), math.inf
    for stage in sorted(set(rounds), reverse=True):
        own = [n for n, reached in enumerate(rounds) if reached == stage and math.isfinite(values[n])]
        if own:
            shift = max(0.0, max(values[n] for n in own) + GAP - ceiling)
            for n in own:
                told[n] = values[n] - shift
            ceiling = min(told[n] for n in own)
    return told
