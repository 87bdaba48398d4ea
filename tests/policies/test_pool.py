"""Budgets that heads share, against a brute-force reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namm.policies import BUDGETED, Head
from namm.policies.pool import best, top


def reference(scores: list[list[float]], total: int, certain: list[int], floors: list[int], limits: list[int]):
    """Scores that stay of each head, by sorting: newest ones first, then each head's best, then the best of all."""
    stays: list[list[float]] = []
    left: list[tuple[float, int]] = []
    for number, own in enumerate(scores):
        newest = min(certain[number], len(own))
        older = sorted(own[: len(own) - newest], reverse=True)
        mine = max(0, min(floors[number], limits[number]) - newest)
        stays.append(own[len(own) - newest :] + older[:mine])
        left += [(score, number) for score in older[mine : max(mine, limits[number] - newest)]]
    left.sort(reverse=True)
    for score, number in left[: max(0, total - sum(map(len, stays)))]:
        stays[number].append(score)
    return [sorted(own) for own in stays]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_best_of_all_heads_stay(data) -> None:
    heads = data.draw(st.integers(1, 5))
    value = (
        st.sampled_from([-torch.inf, *(float(v) for v in range(-3, 4))])
        if data.draw(st.booleans())
        else st.floats(-9, 9)
    )
    scores = [data.draw(st.lists(value, min_size=1, max_size=12)) for _ in range(heads)]
    count = st.lists(st.integers(0, 14), min_size=heads, max_size=heads)
    certain, floors, limits = data.draw(count), data.draw(count), data.draw(count)
    total = data.draw(st.integers(0, 60))
    keep = best([torch.tensor(own, dtype=torch.float64) for own in scores], total, certain, floors, limits)
    for own, mask, newest in zip(scores, keep, certain, strict=True):
        assert mask.dtype == torch.bool and mask.shape == (len(own),)
        assert mask[len(own) - min(newest, len(own)) :].all()
    found = [
        sorted(torch.tensor(own, dtype=torch.float64)[mask].tolist()) for own, mask in zip(scores, keep, strict=True)
    ]
    expected = reference(scores, total, certain, floors, limits)
    # which of two heads gets the last places where scores tie is left open
    assert sorted(sum(found, [])) == sorted(sum(expected, []))
    if len({v for own in scores for v in own}) == sum(map(len, scores)):
        assert found == expected


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30, unique=True), st.integers(1, 40), st.integers(0, 40))
def test_a_head_alone_keeps_what_top_keeps(scores, count, recent) -> None:
    own = torch.tensor(scores, dtype=torch.float64)
    recent = min(recent, count)
    assert torch.equal(best([own], count, [recent], [0])[0], top(own, count, recent))


def heads(layers: int, rows: int, seen: int, seed: int = 0) -> list[Head]:
    generator = torch.Generator().manual_seed(seed)
    columns = [
        {
            "keys": torch.randn(seen, 8, generator=generator) * (1 + layer + index),
            "positions": torch.arange(seen).int(),
            "mass": torch.rand(seen, generator=generator) * (1 + layer + 2 * index),
            "expected": torch.rand(seen, generator=generator) * (1 + layer + 2 * index),
            "rehearsed": torch.rand(seen, generator=generator).clamp_min(0.01) * (1 + layer + 2 * index) / 8,
            "votes": torch.rand(seen, generator=generator) * (1 + layer + 2 * index),
        }
        for layer in range(layers)
        for _ in range(rows)
        for index in range(2)
    ]
    places = [(layer, row, index) for layer in range(layers) for row in range(rows) for index in range(2)]
    return [Head(*place, own, seen, seen) for place, own in zip(places, columns, strict=True)]


@pytest.mark.parametrize("across", ["layer", "model"])
@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [0.25, 40])
def test_a_shared_budget_is_met_exactly_and_by_the_best(name, across, budget) -> None:
    policy = BUDGETED[name](budget=budget, across=across)
    given = heads(layers=3, rows=2, seen=200)
    share = 50 if budget == 0.25 else 40
    keep = policy.select(given)
    counts: dict[tuple[int, ...], list[int]] = {}
    for head, mask in zip(given, keep, strict=True):
        group = (head.row, head.layer) if across == "layer" else (head.row,)
        counts.setdefault(group, []).append(int(mask.sum()))
        assert mask[-max(1, policy.recent(head, share)) :].all()
    assert all(sum(own) == share * len(own) for own in counts.values())
    assert all(min(own) >= round(policy.safeguard * share) for own in counts.values())
    if name in ("h2o", "snapkv", "l2", "tova", "expected", "kvzip"):
        assert all(len(set(own)) > 1 for own in counts.values()), "no head asked for more than another"
    if name == "streaming":
        assert all(torch.equal(a, b) for a, b in zip(keep, BUDGETED[name](budget=budget).select(given), strict=True))


@pytest.mark.parametrize("across", ["layer", "model"])
def test_batch_rows_share_no_budget(across) -> None:
    policy = BUDGETED["tova"](budget=0.25, across=across)
    short, long = heads(2, 1, 60, seed=1), heads(2, 1, 200, seed=2)
    for head in long:
        head.row = 1
    together = policy.select([*short, *long])
    alone = policy.select(short) + policy.select(long)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_a_word_that_names_no_sharing_is_refused() -> None:
    with pytest.raises(ValueError, match="across must be one of head, layer, model, got 'heads'"):
        BUDGETED["h2o"](across="heads")
