from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namm import NAMM, NAMMConfig, policies
from namm.models.rope import Rotary
from namm.policies import BUDGETED, Head, NAMMPolicy, top
from namm.policies.base import REHEARSED


def head(tokens: int, seen: int, seed: int = 0, attention_rows: int = 32) -> Head:
    """A head that kept `tokens` of `seen`, with random contents."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(seen - 1, generator=generator)[: tokens - 1].sort().values
    positions = torch.cat([positions, torch.tensor([seen - 1])]).int()
    keys, values = torch.randn(2, tokens, 8, generator=generator)
    attention = torch.rand(attention_rows, tokens, generator=generator)
    columns = {"keys": keys, "values": values, "positions": positions}
    found = Head(0, 0, 0, columns, seen, min(32, tokens), attention)
    found.queries = torch.randn(2, min(32, tokens), 8, generator=generator)
    found.rotary = Rotary(torch.tensor([1.0, 0.3, 0.1]), interleaved=False, scaling=1.0)
    return found


def decide(policy: policies.Policy, view: Head) -> torch.Tensor:
    state = {name: torch.zeros(view.tokens, *c.shape, dtype=c.dtype) for name, c in policy.state.items()}
    if policy.rehearses:
        state[REHEARSED] += torch.rand(view.tokens).clamp_min(1e-6)
    view.columns = {**view.columns, **state}
    view.summary = policy.observe(view)
    return policy.select([view])[0]


@pytest.mark.parametrize("name", BUDGETED)
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 120),
    extra=st.integers(0, 500),
    budget=st.one_of(st.integers(1, 200), st.floats(0.01, 1.0)),
    seed=st.integers(0, 99),
)
def test_a_budget_means_the_same_for_every_rule(name, tokens, extra, budget, seed):
    view = head(tokens, tokens + extra, seed)
    keep = decide(BUDGETED[name](budget=budget), view)
    allowed = budget if isinstance(budget, int) else max(1, round(budget * view.seen))
    assert keep.dtype == torch.bool and keep.shape == (tokens,)
    assert int(keep.sum()) == min(allowed, tokens)
    assert keep[-1], "the newest token must stay"


def test_streaming_keeps_sinks_and_recent() -> None:
    view = Head(0, 0, 0, {"positions": torch.arange(20)}, 20, 4)
    keep = policies.Streaming(budget=6, sinks=2).keep(view)
    assert keep.nonzero().flatten().tolist() == [0, 1, 16, 17, 18, 19]


def test_h2o_accumulates_over_updates() -> None:
    policy = policies.H2O(budget=4)
    view = head(8, 8)
    view.columns = {**view.columns, "mass": torch.tensor([9.0, 0, 0, 0, 5.0, 0, 0, 0])}
    view.attention = torch.zeros(4, 8)
    view.attention[:, 1] = 2.0
    view.summary = policy.observe(view)
    assert view.columns["mass"].tolist() == [9, 8, 0, 0, 5, 0, 0, 0]
    assert policy.keep(view).nonzero().flatten().tolist() == [0, 1, 6, 7]


def test_l2_keeps_small_keys_and_can_spare_layers() -> None:
    view = head(5, 5)
    view.columns = {**view.columns, "keys": torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0])[:, None]}
    assert policies.L2(budget=3).keep(view).tolist() == [False, True, True, False, True]
    assert policies.L2(budget=3, skip_layers=1).keep(view).all()


@pytest.mark.fault("E", siblings="a test whose older queries say the same as the newest one")
def test_tova_follows_the_newest_query() -> None:
    view = head(5, 5)
    view.attention = torch.tensor([[0.0, 9, 0, 5, 0], [0.5, 0.1, 0.4, 0.2, 0.0]])
    assert decide(policies.TOVA(budget=3), view).tolist() == [True, False, True, False, True]


def test_snapkv_pools_votes_over_neighbours() -> None:
    view = head(12, 12, attention_rows=2)
    view.attention = torch.zeros(2, 12)
    view.attention[:, 3] = 1.0
    keep = decide(policies.SnapKV(budget=5, window=2, pool=3), view)
    assert keep.nonzero().flatten().tolist() == [2, 3, 4, 10, 11]


def test_random_is_deterministic_and_depends_on_the_head() -> None:
    view = head(100, 100)
    first = policies.Random(budget=50).keep(view)
    assert torch.equal(first, policies.Random(budget=50).keep(view))
    view.index = 1
    assert not torch.equal(first, policies.Random(budget=50).keep(view))


def test_namm_offset_and_cap_trade_memory() -> None:
    memory = NAMM(NAMMConfig(update_interval=32))
    counts = []
    for offset in (-1e9, -0.1, 0.1, 1e9):
        keep = decide(NAMMPolicy(memory, offset=offset), head(60, 200, attention_rows=48))
        counts.append(int(keep.sum()))
    assert counts[0] == 1 and counts[-1] == 60 and counts == sorted(counts)
    capped = decide(NAMMPolicy(memory, offset=1e9, cap=10), head(60, 200, attention_rows=48))
    assert int(capped.sum()) == 10 and capped[-1]
    fraction = decide(NAMMPolicy(memory, offset=1e9, cap=0.1), head(60, 200, attention_rows=48))
    assert int(fraction.sum()) == 20
    tight = decide(NAMMPolicy(memory, offset=-1e9, cap=1), head(60, 200, attention_rows=48))
    assert int(tight.sum()) == 1 and tight[-1], "the newest token counts"


def test_namm_scores_ragged_heads_together_as_alone() -> None:
    memory = NAMM(NAMMConfig(update_interval=32))
    views = [head(n, 300, seed=n, attention_rows=48) for n in (7, 120, 60)]
    alone = [decide(NAMMPolicy(memory), view) for view in views]
    together = NAMMPolicy(memory).select(views)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert any(a.any() and not a.all() for a in alone)


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, True, "half"])
def test_bad_budgets_are_refused(budget) -> None:
    with pytest.raises((ValueError, TypeError), match="budget"):
        policies.H2O(budget=budget)


def test_bad_namm_arguments_are_refused() -> None:
    for both in ({"offset": 1.0, "kept": 0.5}, {"offset": 1.0, "budget": 9}, {"kept": 0.5, "budget": 9}):
        with pytest.raises(ValueError, match="only one of offset, kept and budget"):
            NAMMPolicy(NAMM(), **both)
    for kept in (0, 1.5, -0.1, float("nan"), True, "half"):
        with pytest.raises((ValueError, TypeError), match="kept"):
            NAMMPolicy(NAMM(), kept=kept)
    for budget in (0, -5, 0.25, True):
        with pytest.raises((ValueError, TypeError), match="budget"):
            NAMMPolicy(NAMM(), budget=budget)
    with pytest.raises(ValueError, match="cap"):
        NAMMPolicy(NAMM(), cap=0)


def test_a_policy_without_a_rule_says_so() -> None:
    with pytest.raises(TypeError, match="must define keep"):
        policies.Policy().select([head(3, 3)])


def test_top_prefers_recent_then_best() -> None:
    assert top(torch.tensor([0.1, 0.9, 0.5, 0.0]), 2, recent=1).tolist() == [False, True, False, True]


@pytest.mark.fault("A8", siblings="an offset of NaN, which gave the same")
def test_scores_of_nan_are_refused_with_their_place():
    view = head(40, 64)
    view.layer, view.index = 3, 1
    assert view.attention is not None
    view.attention[5, 7] = torch.nan
    with pytest.raises(ValueError, match=r"layer 3, KV head 1, as NaN.*bfloat16 or float32"):
        decide(NAMMPolicy(NAMM(NAMMConfig(update_interval=32)), offset=1e9), view)
    with pytest.raises(ValueError, match="offset is NaN"):
        NAMMPolicy(NAMM(), offset=float("nan"))


@pytest.mark.parametrize("most", [1, 50, 2**15])
def test_heads_scored_together_are_scored_as_each_alone(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a head with nothing to decide on among them; what is not up for decision counts 0."""
    monkeypatch.setattr("namm.policies.namm.SCORED", most)
    generator = torch.Generator().manual_seed(0)
    policy = NAMMPolicy(NAMM(NAMMConfig(hidden=8, reach=16)))
    heads = []
    for index, (tokens, undecided) in enumerate([(40, 0), (7, 7), (1, 0), (90, 20)]):
        columns = {name: torch.rand(tokens, *own.shape, generator=generator) for name, own in policy.state.items()}
        columns["positions"] = torch.arange(tokens, dtype=torch.int32) * 2
        heads.append(Head(0, 0, index, columns, 2 * tokens - 1, 0, undecided=undecided))
    for head, found in zip(heads, policy.score(heads), strict=True):
        (alone,) = policy.score([head])
        torch.testing.assert_close(found, alone)
        assert bool((found[head.tokens - head.undecided :] == 0).all())
        assert head.undecided == head.tokens or bool((found[: head.tokens - head.undecided] != 0).all())
