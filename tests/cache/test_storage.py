from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namm.cache.storage import TokenStore
from namm.support.tensors import SEGMENT, Column, round_up


def make(heads: int = 2) -> TokenStore:
    return TokenStore(
        heads, torch.zeros(1, 3), torch.zeros(1, 5), {"mass": Column(), "pair": Column((2,), torch.bfloat16)}
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), heads=st.integers(1, 4))
def test_behaves_like_lists(data, heads):
    """Any sequence of appends and evictions leaves exactly the tokens that lists would hold."""
    store, model, seen = make(heads), [[] for _ in range(heads)], 0
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()) or not seen:
            n = data.draw(st.sampled_from([1, 2, 63, 64, 65, 200]))
            positions = torch.arange(seen, seen + n)
            marks = positions.float()[None, :, None] + 1000 * torch.arange(heads)[:, None, None]
            store.append(marks.expand(heads, n, 3), -marks.expand(heads, n, 5), positions)
            store.make_writable()
            for h in range(heads):
                store.head(h)["mass"][len(model[h]) :] = positions.float()
                model[h] += range(seen, seen + n)
            seen += n
        else:
            picks = [
                data.draw(st.lists(st.sampled_from(range(len(m))), min_size=1, unique=True).map(sorted)) for m in model
            ]
            store.keep([torch.tensor(p) for p in picks])
            model = [[m[i] for i in p] for m, p in zip(model, picks, strict=True)]
            slots = sum(round_up(len(m)) for m in model)
            assert store.nbytes("keys") == slots * 3 * 4, "evicted memory is still held"
        store.check()
        for h in range(heads):
            view = store.head(h)
            assert view["positions"].tolist() == model[h]
            assert torch.equal(view["keys"][:, 0], torch.tensor(model[h]).float() + 1000 * h)
            assert torch.equal(view["values"][:, 4], -view["keys"][:, 0])
            assert torch.equal(view["mass"], torch.tensor(model[h]).float())


def test_single_tokens_copy_the_store_only_once_in_a_while() -> None:
    store = make()
    moved, column = 0, store.columns["keys"]
    for position in range(4 * SEGMENT):
        store.append(torch.zeros(2, 1, 3), torch.zeros(2, 1, 5), torch.tensor([position]))
        moved += store.columns["keys"] is not column
        column = store.columns["keys"]
    assert moved <= 20


def test_state_takes_no_memory_before_it_is_written() -> None:
    store = make()
    store.append(torch.ones(2, 5, 3), torch.ones(2, 5, 5), torch.arange(5))
    assert set(store.columns) == {"keys", "values", "positions"}
    store.make_writable()
    assert store.head(0)["pair"].shape == (5, 2) and not store.columns["mass"].any()
    store.check()


def test_a_clone_shares_nothing() -> None:
    store = make()
    store.append(torch.ones(2, 4, 3), torch.ones(2, 4, 5), torch.arange(4))
    other = store.clone()
    other.head(0)["keys"][:] = 7
    other.keep([torch.tensor([0]), torch.tensor([1])])
    assert store.lengths == [4, 4] and store.head(0)["keys"].max() == 1
    store.check()
    other.check()


@pytest.mark.parametrize("damage", ["lengths", "positions", "state", "view"])
def test_check_finds_damage(damage: str) -> None:
    store = make()
    store.append(torch.ones(2, 5, 3), torch.ones(2, 5, 5), torch.arange(5))
    if damage == "lengths":
        store.lengths[0] = 1000
    elif damage == "positions":
        store.head(1)["positions"][2] = 0
    elif damage == "state":
        store.make_writable()
        store.columns["mass"][6] = 1.0
    else:
        store.columns["keys"] = torch.zeros(2 * len(store.columns["keys"]), 3)[::2]
    with pytest.raises(AssertionError):
        store.check()


def test_tokens_stored_in_inference_mode_can_be_added_to_outside_it() -> None:
    with torch.inference_mode():
        store = make()
        store.append(torch.ones(2, 4, 3), torch.ones(2, 4, 5), torch.arange(4))
    store.append(torch.ones(2, 1, 3), torch.ones(2, 1, 5), torch.tensor([4]))
    store.check()
    assert store.lengths == [5, 5]
