"""A mean and how far it may be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its 95% interval by the normal approximation (NaN for a single value, or where one is not finite).

    >>> mean_interval([1.0, 3.0])
    (2.0, 1.96)
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))
