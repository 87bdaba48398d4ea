from __future__ import annotations

import math
import random

import pytest

from namm.support.statistics import mean_interval, ratio_interval, student_quantile

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


def test_a_ratio_of_means_and_half_its_interval() -> None:
    # the same references: the interval of the mean, over the reference
    assert ratio_interval([0.0, 1.0, 1.0, 2.0], [2.0] * 4) == pytest.approx(
        [x / 2 for x in mean_interval([0, 1, 1, 2])]
    )
    # values that follow their references leave nothing to doubt
    assert ratio_interval([0.5, 1.0, 4.0], [1.0, 2.0, 8.0]) == pytest.approx((0.5, 0.0))
    # values 1, 3 of 2, 2: ratio 1, residuals -1, 1 over 2: deviation 0.7071, t 12.706
    assert ratio_interval([1.0, 3.0], [2.0, 2.0]) == pytest.approx((1.0, 12.706205 * 0.5), abs=1e-6)
    assert all(math.isnan(value) for value in ratio_interval([1.0, 2.0], [0.0, 0.0]))
    assert math.isnan(ratio_interval([1.0], [2.0])[1])


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    numbers = random.Random(0)
    held = 0
    for _ in range(400):
        references = [numbers.uniform(0.5, 1.5) for _ in range(30)]
        values = [0.9 * one + numbers.gauss(0, 0.1) for one in references]
        ratio, half = ratio_interval(values, references)
        held += abs(ratio - 0.9) <= half
    assert 0.92 <= held / 400 <= 0.98
