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
