"""A branch is a cache that read the same for itself."""

from __future__ import annotations

import pytest
import torch
from sliding import sliding

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.branch import branch
from namm.policies import H2O, Full, NAMMPolicy, Streaming

MEMORY = NAMM(NAMMConfig(update_interval=32, hidden=8))
POLICIES = [Full(), H2O(0.3, 32), Streaming(0.25, 1), NAMMPolicy(MEMORY), NAMMPolicy(MEMORY, kept=0.25)]


@pytest.fixture(scope="module", params=["full", "sliding"])
def model(request, wild):
    return wild if request.param == "full" else sliding()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{getattr(policy, 'kept', None)}")
@pytest.mark.parametrize("tokens", [1, 31, 32, 50])
@pytest.mark.parametrize("engine", ["loops", "padded"])
def test_a_branch_goes_on_as_its_source_does(model, ids, policy, tokens, engine) -> None:
    if engine == "padded" and not policy.takes_grids:
        pytest.skip("this policy has one engine")
    source = MemoryCache(model, policy, engine)
    with torch.no_grad():
        model(ids[:, :tokens], past_key_values=source)
        copied = branch(model, source, policy)
        assert copied.get_seq_length() == tokens and copied.stats() == source.stats()
        held = [layer[0][0].clone() for layer in source.positions()]
        for start in (tokens, 120):
            step = ids[:, start : start + 40]
            logits = model(step, past_key_values=copied).logits
            copied.settle()
            if start == tokens:
                assert all(torch.equal(a, layer[0][0]) for a, layer in zip(held, source.positions(), strict=True)), (
                    "a branch changed its source"
                )
            torch.testing.assert_close(model(step, past_key_values=source).logits, logits)
            source.settle()
            assert copied.stats() == source.stats()
            copied.check()


def test_what_was_put_off_is_decided_on_before_the_branch_settles(wild, ids) -> None:
    """96 tokens that came in one call are compared over all layers, and then come the 14 after the last block."""

    class PutsOff(NAMMPolicy):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.trims = False

        def select(self, heads):
            return [torch.ones(head.tokens, dtype=torch.bool) for head in heads]

    asked: list[tuple[int, bool]] = []

    class Asks(NAMMPolicy):
        def select(self, heads):
            asked.append((heads[0].tokens, heads[0].whole))
            return super().select(heads)

    source = MemoryCache(wild, PutsOff(MEMORY))
    with torch.no_grad():
        wild(ids[:, :110], past_key_values=source)
    copied = branch(wild, source, Asks(MEMORY, kept=0.25))
    copied.settle()
    assert asked[0] == (96, True) and len(asked) == 2 and asked[1][1]
    assert copied.stats().kept_fraction == pytest.approx(0.25, abs=0.005)
    assert source.stats().kept_fraction == 1.0
