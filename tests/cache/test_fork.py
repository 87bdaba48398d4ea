"""A fork goes on as a copy would, and shares what it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from layers import Layers, random_tokens

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.policies import H2O, Full, KVzip, NAMMPolicy, Policy

CONFIG = NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True, key_value=True)
POLICIES: dict[str, Policy] = {
    "namm": NAMMPolicy(NAMM(CONFIG), kept=0.4),
    "offset": NAMMPolicy(NAMM(CONFIG), offset=0.1),
    "h2o": H2O(0.3, 16),
    "full": Full(),
}


def forked(layers: Layers) -> Layers:
    made = Layers(layers.policy, layers.engine, layers.form, len(layers.layers))
    for layer, source in zip(made.layers, layers.layers, strict=True):
        layer.continue_from(source)
    return made


def equal(found: Any, wanted: Any) -> None:
    for own, other in zip(found, wanted, strict=True):
        assert torch.equal(own, other)


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    rows=st.integers(1, 2),
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "settle", "fork", "hide", "select"]), st.sampled_from([1, 2, 5, 16, 21])),
        min_size=3,
        max_size=9,
    ),
    seed=st.integers(0, 99),
)
def test_whatever_happens_a_fork_is_as_one_that_was_alone(policy, rows, steps, seed) -> None:
    """Two runs of the same calls: in one of them, at every fork the source goes on with other tokens first."""
    generator = torch.Generator().manual_seed(seed)
    form = AttentionForm(0.5)
    with_forks, alone = (Layers(POLICIES[policy], "loops", form) for _ in range(2))
    first = random_tokens(rows, 2, 2, 19, 8, 2, generator)
    for each in (with_forks, alone):
        each.feed(first)
    sources = []
    for kind, tokens in steps:
        if kind == "fork":
            source, with_forks = with_forks, forked(with_forks)
            before = [{name: column.clone() for name, column in own.items()} for own in source.held()]
            sources.append((source, before))
            continue
        new = random_tokens(rows, 2, 2, tokens, 8, 2, generator)
        order = torch.randint(rows, (rows,), generator=generator).tolist()
        found = []
        for each in (with_forks, alone):
            if kind == "read":
                found.append(each.feed(new))
            elif kind == "settle":
                each.settle(None)
            elif kind == "hide":
                seen = [row.seen for row in each.layers[0].rows]
                each.hide([torch.arange(0, n, 4) for n in seen])
            else:
                each.select(order)
        if found:
            equal(*found)
        for own, other in zip(with_forks.held(), alone.held(), strict=True):
            assert own.keys() == other.keys()
            equal(own.values(), other.values())
    for source, before in sources:
        for own, was in zip(source.held(), before, strict=True):
            equal(own.values(), was.values())
        source.feed(first)  # and can go on itself


def test_forks_share_what_was_read_until_they_decide(wild, ids) -> None:
    policy = NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=32)), kept=0.25)
    cache = MemoryCache(wild, policy)
    with torch.inference_mode():
        wild(ids, past_key_values=cache)
        cache.settle()
        forks = [cache.fork() for _ in range(3)]
        for number, fork in enumerate(forks):
            wild(ids[:, number : number + 9], past_key_values=fork)
    stored = [
        {layer.rows[0].store.held.columns["keys"].data_ptr() for layer in each.layers} for each in (cache, *forks)
    ]
    assert all(own == stored[0] for own in stored)
    held, other = cache.stats(), forks[1].stats()
    assert other.seen == (309,) and held.seen == (300,)
    assert 0 < other.shared_bytes == held.shared_bytes <= other.held_bytes
    assert other.held_bytes - other.shared_bytes < 0.5 * held.shared_bytes
    with torch.inference_mode():
        wild(ids[:, :40], past_key_values=forks[0])
    assert forks[0].stats().shared_bytes == 0 and forks[1].stats() == other
    for each in (cache, *forks):
        each.check()


@pytest.mark.parametrize("engine", ["loops", "padded"])
def test_a_fork_can_be_rehearsed_into(wild, ids, engine) -> None:
    memory = NAMM(NAMMConfig(hidden=8, update_interval=32, influence=(0.5, -1.0)))
    policy = NAMMPolicy(memory, kept=0.5, rehearsed=True)
    cache, told = MemoryCache(wild, policy, engine), torch.tensor([5, 6])
    with torch.inference_mode():
        cache.rehearse(ids[:, :100], told)
        fork = cache.fork()
        logits = [each.rehearse(ids[:, 100:], told) for each in (fork, cache)]
    assert torch.equal(*logits)
    fork.check()


def test_a_fork_generates_beams_and_more(wild, ids) -> None:
    policy = NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=32)), kept=0.5)
    options = {"max_new_tokens": 40, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cache = MemoryCache(wild, policy)
    with torch.inference_mode():
        wild(ids[:, :-1], past_key_values=cache)
        cache.settle()
        answers = []
        for each in (cache.fork(), cache.fork(), cache):
            each.batch_repeat_interleave(3)
            answers.append(wild.generate(ids, past_key_values=each, **options))
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[2])


def test_a_cache_without_its_model_is_refused(tiny) -> None:
    import copy
    import pickle

    cache = pickle.loads(pickle.dumps(MemoryCache(copy.deepcopy(tiny), KVzip(0.5))))
    with pytest.raises(ValueError, match="attach"):
        cache.fork()
