"""What no other test of the rules would notice; each of these catches a mutation of `mutants.py`."""

from __future__ import annotations

import pytest
import torch

from namm import NAMM, NAMMConfig
from namm.policies import Head, NAMMPolicy

SCORES = torch.tensor([0.5, 3.0, -1.0, 2.0, 1.0, 0.1])


@pytest.mark.parametrize("cap", [3, 0.3])
def test_a_cap_keeps_the_best_and_the_newest(cap: float | int) -> None:
    policy = NAMMPolicy(NAMM(NAMMConfig()), cap=cap)
    view = Head(0, 0, 0, {"positions": torch.tensor([0, 2, 3, 5, 8, 9])}, seen=10, new=4)
    assert policy.choose([view], [SCORES])[0].tolist() == [False, True, False, True, False, True]


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    view = Head(0, 0, 0, {"positions": torch.arange(6)}, seen=6, new=4)
    expected = [True, True, False, True, True, True]
    for cap in (None, 5, 6, 1.0):
        assert NAMMPolicy(NAMM(NAMMConfig()), cap=cap).choose([view], [SCORES])[0].tolist() == expected
