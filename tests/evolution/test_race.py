import math

import pytest

from namm.evolution.race import GAP, better_half, ranked


def test_the_better_half_goes_on_in_its_old_order():
    assert better_half([0, 1, 2, 3], [0.1, 0.9, 0.2, 0.3]) == [1, 3]
    assert better_half([0, 2, 3], [0.1, 9.0, 0.2, 0.3]) == [2, 3], "candidate 1 was dropped before"
    assert better_half([0, 1, 2], [0.5, 0.5, 0.5]) == [0, 1], "of equals the first"
    assert better_half([0, 1, 2, 3], [-math.inf, 0.1, -math.inf, -1.0]) == [1, 3]


def test_none_that_was_dropped_is_as_good_as_one_that_went_on():
    values, rounds = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0], [1, 3, 2, 3, 1, 2]
    told = ranked(values, rounds)
    assert told[1] == 1.0 and told[3] == 2.0
    assert told[5] == pytest.approx(1.0 - GAP) and told[2] == pytest.approx(1.0 - GAP - 5.0)
    assert told[0] == pytest.approx(told[2] - GAP) and told[4] == pytest.approx(told[0] - 2.0)


def test_values_that_are_in_order_stay():
    assert ranked([0.5, 1.0, 0.1, 2.0], [1, 2, 1, 2]) == [0.5, 1.0, 0.1, 2.0]


def test_who_fails_is_the_worst_of_all():
    assert ranked([-math.inf, 0.5, -math.inf], [2, 1, 1]) == [-math.inf, 0.5, -math.inf]
