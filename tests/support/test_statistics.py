from __future__ import annotations

import math

import pytest

from namm.support.statistics import mean_interval, student_quantile

# published tables, two-sided 95%
QUANTILES = {1: 12.706205, 2: 4.302653, 3: 3.182446, 5: 2.570582, 10: 2.228139, 30: 2.042272, 100: 1.983972}


@pytest.mark.fault("A6", siblings="all intervals come from here: evaluation, evolution, inspection, benchmarks")
@pytest.mark.parametrize("freedom, wanted", QUANTILES.items())
def test_quantiles_of_student(freedom: int, wanted: float) -> None:
    assert student_quantile(freedom) == pytest.approx(wanted, abs=1e-6)


def test_many_values_are_nearly_normal() -> None:
    assert student_quantile(10**6) == pytest.approx(1.959966, abs=1e-6)


@pytest.mark.fault("A6")
def test_mean_and_half_the_interval() -> None:
    mean, half = mean_interval([0.0, 1.0, 1.0, 2.0])  # variance 2/3, four values
    assert mean == 1.0
    assert half == pytest.approx(3.182446 * math.sqrt(2 / 3 / 4), abs=1e-6)


def test_one_value_has_no_interval() -> None:
    mean, half = mean_interval([3.0])
    assert mean == 3.0 and math.isnan(half)


def test_a_failed_member_leaves_no_interval_but_stops_nothing() -> None:
    mean, half = mean_interval([-math.inf, 1.0])
    assert mean == -math.inf and math.isnan(half)
