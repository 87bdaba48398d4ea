from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, attend, attend_exactly, attend_newest, groups, replay
from namm.cache.split import SplitStore
from namm.cache.storage import TokenStore
from namm.support.tensors import round_up


def reference(
    query: Tensor, keys: Tensor, scaling: float, softcap: float | None, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal probabilities ``[group, queries, tokens]`` and log normalisers, float64, from the definition."""
    group, queries, _ = query.shape
    logits = query.double() @ keys.double().T * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    future = torch.ones(queries, len(keys), dtype=torch.bool).triu(len(keys) - queries + 1)
    logits = logits.masked_fill(future, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[:, None, None].expand(group, queries, 1)], -1)
    return logits.softmax(-1)[..., : len(keys)], logits.logsumexp(-1)


shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 128, 129, 300]), st.sampled_from([0, 1, 90]))


@settings(max_examples=30, deadline=None)
@given(
    shape=shapes,
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
    record=st.sampled_from([0, 1, 4, 10**6]),
    seed=st.integers(0, 999),
)
def test_attend_equals_the_definition(shape, softcap, with_sinks, record, seed):
    group, queries, older = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(group, queries, 8, generator=generator)
    keys, values = torch.randn(2, older + queries, 8, generator=generator)
    sinks = torch.randn(group, generator=generator) if with_sinks else None
    record = min(record, queries)
    expected, normaliser = reference(query, keys, 0.5, softcap, sinks)
    logits, tokens = AttentionForm(0.5, softcap, sinks), older + queries
    slots = round_up(tokens)
    keys, values = F.pad(keys, (0, 0, 0, slots - tokens)), F.pad(values, (0, 0, 0, slots - tokens))
    attention = torch.zeros(record, slots) if record else None
    found = torch.zeros(group, queries)
    output = attend(query, keys, values, tokens, logits, attention, found)
    torch.testing.assert_close(output.double(), expected @ values[:tokens].double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.double(), normaliser, atol=1e-5, rtol=1e-5)
    if attention is None:
        return
    recent = F.pad(expected[:, queries - record :], (0, slots - tokens))
    torch.testing.assert_close(attention.double(), recent.mean(0), atol=1e-6, rtol=1e-5)
    every = torch.zeros(group, record, slots)
    last = torch.zeros(group, min(2, record))
    assert attend(query[:, queries - record :], keys, None, tokens, logits, every, last) is None
    torch.testing.assert_close(last.double(), normaliser[:, queries - last.shape[1] :], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(every.double(), recent, atol=1e-6, rtol=1e-5)


def test_replay_gives_back_what_earlier_queries_paid() -> None:
    query, keys = torch.randn(3, 16, 8), torch.randn(40, 8)
    expected, normaliser = reference(query, keys, 0.3, None, None)
    left = torch.tensor([0, 5, 6, 20])  # of the keys that all of these queries saw
    again, every = torch.zeros(16, 4), torch.zeros(3, 16, 4)
    with_new_key = torch.cat([keys[left], torch.randn(1, 8)])
    replay(query, normaliser.float(), with_new_key, AttentionForm(0.3), again)
    replay(query, normaliser.float(), with_new_key, AttentionForm(0.3), every)
    torch.testing.assert_close(again.double(), expected[..., left].mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(every.double(), expected[..., left], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (1, 9), (7, 7), (7, 30)])
def test_attend_exactly_is_causal_from_the_end(queries: int, tokens: int) -> None:
    query, keys, values = torch.randn(3, queries, 8), torch.randn(tokens, 8), torch.randn(tokens, 8)
    expected = reference(query, keys, 0.3, None, None)[0] @ values.double()
    torch.testing.assert_close(attend_exactly(query, keys, values, 0.3).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("since", [0, 2])
def test_the_newest_token_attends_as_any_other(softcap: float | None, with_sinks: bool, since: int) -> None:
    """In segments with free slots and without, of heads of different lengths, in one part and in two."""
    generator = torch.Generator().manual_seed(0)
    heads = []
    for tokens in (3, 16, 70):
        keys, values = torch.randn(2, tokens, 8, generator=generator)
        heads.append({"keys": keys, "values": values, "positions": torch.arange(tokens, dtype=torch.int32)})
    store: TokenStore | SplitStore = TokenStore.of(heads, {})
    if since:
        old = TokenStore.of([{name: column[:-since] for name, column in own.items()} for own in heads], {})
        new = TokenStore.of([{name: column[-since:] for name, column in own.items()} for own in heads], {})
        store = SplitStore(old, new)
    query = torch.randn(6, 1, 8, generator=generator)
    form = AttentionForm(0.3, softcap, torch.randn(6, generator=generator) if with_sinks else None)
    found = attend_newest(query, store, form)
    for own, head in zip(groups(query, 3), heads, strict=True):
        expected = attend(query[own], head["keys"], head["values"], len(head["keys"]), form.of_group(own))
        torch.testing.assert_close(found[own], expected, atol=1e-6, rtol=1e-5)
