"""What no other test of the cache would notice; each of these catches a mutation of `mutants.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm import MemoryCache
from namm.cache.arithmetic import AttentionForm, attend, replay
from namm.policies import Head, Policy


@dataclass
class Watching(Policy):
    """Keeps what it is told to and writes down what it sees of layer 1, head 0."""

    update_interval: int = 8
    queries: int | None = None
    carry: int = 0
    all: bool = True
    seen: list[Tensor] = field(default_factory=list)

    def observe(self, head: Head) -> None:
        if (head.layer, head.index) == (1, 0):
            assert head.attention is not None
            self.seen.append(head.attention.clone())

    def keep(self, head: Head) -> Tensor:
        return torch.full((head.tokens,), self.all)


@torch.no_grad()
def watched(model: PreTrainedModel, ids: Tensor, policy: Watching, pieces: list[int]) -> MemoryCache:
    cache = MemoryCache(model, policy)
    for piece in ids[:, : sum(pieces)].split(pieces, dim=1):
        model(piece, past_key_values=cache)
    return cache


@torch.no_grad()
def attention(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """``[queries, tokens]`` of layer 1, KV head 0, as transformers gives it, mean over the group."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = model(ids, output_attentions=True).attentions[1][0]
    finally:
        model.set_attn_implementation(own)
    return found[: found.shape[0] // model.config.num_key_value_heads].mean(0)


def test_the_newest_token_stays_whatever_the_policy_says(tiny: PreTrainedModel, ids: Tensor) -> None:
    for pieces in ([16], [8, 8], [3, 5, 7, 1]):
        cache = watched(tiny, ids, Watching(all=False), pieces)
        assert {head.item() for layer in cache.positions() for head in layer[0]} == {15}


@pytest.mark.parametrize("pieces", [[8], [5, 3], [6, 1, 1], [1] * 8, [2, 6]], ids=str)
def test_a_policy_sees_the_newest_queries(tiny: PreTrainedModel, ids: Tensor, pieces: list[int]) -> None:
    policy = Watching(queries=3)
    watched(tiny, ids, policy, pieces)
    torch.testing.assert_close(policy.seen[0], attention(tiny, ids[:, :8])[5:8])


@pytest.mark.parametrize("pieces", [[16], [8, 8], [11, 5], [1] * 16], ids=str)
def test_carried_queries_paid_what_the_model_says(tiny: PreTrainedModel, ids: Tensor, pieces: list[int]) -> None:
    """The last four queries of the first block come again in the second: newer tokens they paid nothing."""
    policy = Watching(carry=4)
    watched(tiny, ids, policy, pieces)
    expected = attention(tiny, ids[:, :16])
    assert not policy.seen[0][:4].any(), "nothing came before the first block"
    torch.testing.assert_close(policy.seen[0][4:], expected[:8, :8])
    torch.testing.assert_close(policy.seen[1], expected[4:16])


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_replayed_query_pays_what_it_paid(softcap: float | None, sinks: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 5, 8, generator=generator), 3 * torch.randn(20, 8, generator=generator)
    form = AttentionForm(0.5, softcap, torch.tensor([1.0, 3.0]) if sinks else None)
    record = torch.zeros(2, 5, 20)
    normalisers = torch.zeros(2, 5)
    attend(query, keys, None, 20, form, record, normalisers)
    again = torch.zeros(2, 5, 20)
    replay(query, normalisers, keys, form, again)
    # what a query pays to tokens after it is cut off by who asks for the replay
    torch.testing.assert_close(again[..., :16], record[..., :16])
