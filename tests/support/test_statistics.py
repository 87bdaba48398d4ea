from __future__ import annotations

import math

import pytest

from namm.evaluation import mean_interval


def test_mean_and_half_the_interval():
    mean, half = mean_interval([0.0, 1.0, 1.0, 2.0])  # variance 2/3, four values
    assert mean == 1.0
    assert half == pytest.approx(1.96 * math.sqrt(2 / 3 / 4))


def test_one_value_has_no_interval():
    mean, half = mean_interval([3.0])
    assert mean == 3.0 and math.isnan(half)


def test_a_failed_member_leaves_no_interval_but_stops_nothing():
    mean, half = mean_interval([-math.inf, 1.0])
    assert mean == -math.inf and math.isnan(half)
