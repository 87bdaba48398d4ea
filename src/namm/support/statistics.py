"""A mean and how far it may be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its 95% interval by Student's t (NaN for a single value, or where one is not finite).

    >>> mean, half = mean_interval([1.0, 3.0])
    >>> mean, round(half, 4)
    (2.0, 12.7062)
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float(np.mean(values)), math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), student_quantile(len(values) - 1) * error


def ratio_interval(values: Sequence[float], references: Sequence[float]) -> tuple[float, float]:
    """Mean of the values over the mean of their references, and half its 95% interval.

    The ratio r of two means moves, to first order, as the mean of (value - r * reference) / (mean reference), and
    Student's t goes by the deviation of that (Cochran, Sampling Techniques, 1977, chapter 6).

    Args:
        values, references: of the same samples, pair by pair.

    Returns:
        NaN twice where the references are 0 on average; NaN for the interval as in `mean_interval`.

    >>> ratio_interval([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])[0]
    0.75
    """
    best = float(np.mean(references))
    if best == 0:
        return math.nan, math.nan
    ratio = float(np.mean(values)) / best
    _, half = mean_interval([(value - ratio * other) / best for value, other in zip(values, references, strict=True)])
    return ratio, half


@cache
def student_quantile(freedom: int) -> float:
    """The t that a variable of Student's distribution stays within, on both sides of 0, with 95% probability.

    By the incomplete beta function: P(|T| > t) = I(n / 2, 1 / 2) at n / (n + t^2), for n degrees of freedom.
    """
    import mpmath  # slow to import, and comes with torch in any case

    def excess(t: float) -> float:
        outside = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
        return outside - (1 - LEVEL)

    return float(mpmath.findroot(excess, (1.9, 13), solver="anderson"))
