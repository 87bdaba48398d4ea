from __future__ import annotations

import math

import pytest

from namm import NAMM, NAMMConfig
from namm.policies import BUDGETED, Full, NAMMPolicy
from namm.policies.names import POLICIES, check_policies, make_policy

MEMORY = NAMM(NAMMConfig(update_interval=64))


def test_every_name_gives_its_policy_at_the_memorys_interval() -> None:
    check_policies(POLICIES)
    for name in BUDGETED:
        policy = make_policy(name, 0.25, MEMORY)
        assert (policy.name, policy.budget) == (name, 0.25)
        assert policy.update_interval == (2048 if name == "kvzip" else 64), "a rehearsal has chunks of its own"
    assert isinstance(make_policy("full", None, MEMORY), Full)
    own = make_policy("namm", None, MEMORY)
    assert isinstance(own, NAMMPolicy) and own.memory is MEMORY


def test_a_rule_whose_heads_share_a_layers_budget() -> None:
    for name in BUDGETED:
        check_policies([f"ada-{name}"])
        policy = make_policy(f"ada-{name}", 0.5, MEMORY)
        assert (policy.name, policy.budget, policy.across) == (name, 0.5, "layer")
        assert make_policy(name, 0.5, MEMORY).across == {"expected": "layer", "kvzip": "model"}.get(name, "head")
    for name in ("ada-full", "ada-namm", "ada-", "ada-ada-h2o"):
        with pytest.raises(ValueError, match="unknown policy"):
            check_policies([name])


@pytest.mark.fault(
    "C20", siblings="what was above 1, infinite or no number was taken for 1, where rules are made by name"
)
@pytest.mark.parametrize("budget", [0, -0.5, 1.5, math.inf, math.nan, "half", True])
@pytest.mark.parametrize("name", sorted(BUDGETED))
def test_a_budget_is_a_fraction_or_a_number_of_tokens(name, budget) -> None:
    with pytest.raises(ValueError, match=f"above 0 and at most 1, or a whole number of tokens .* not {budget!r}"):
        make_policy(name, budget, MEMORY)
    with pytest.raises(ValueError, match=f"'{name}' needs a budget"):
        make_policy(name, None, MEMORY)
    for given, meant in ((1, 1.0), (64, 64), (64.0, 64)):
        found = make_policy(name, given, MEMORY).budget
        assert (found, type(found)) == (meant, type(meant))


def test_the_memory_takes_a_fraction_or_a_number_of_tokens() -> None:
    assert make_policy("namm", 0.3, MEMORY).share == 0.3
    assert make_policy("namm", 64, MEMORY).share == 64
    assert make_policy("namm", None, MEMORY).share is None
    with pytest.raises(ValueError, match="not 1.5"):
        make_policy("namm", 1.5, MEMORY)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="'h20'"):
        check_policies(["full", "h20"])
