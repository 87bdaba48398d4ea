from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from namm import MemoryCache
from namm.policies import ExpectedAttention


def dense(model: PreTrainedModel, ids: Tensor, layer: int, *, future: int, epsilon: float) -> Tensor:
    """The paper's score of every token of one pass, ``[KV heads, tokens]`` float64, from the projections' own outputs.

    Rotations are whole matrices here; the first four tokens are left out of all sums, and get infinity.
    """
    found: dict[str, Tensor] = {}
    attention = model.model.layers[layer].self_attn
    handles = [
        getattr(attention, f"{name}_proj").register_forward_hook(
            lambda module, given, output, name=name: found.__setitem__(name, output[0].double())
        )
        for name in "qkv"
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    tokens, width = ids.shape[1], attention.head_dim
    queries, keys, values = (found[name].view(tokens, -1, width).transpose(0, 1) for name in "qkv")

    def rotations(first: int, count: int) -> Tensor:
        cos, sin = model.model.rotary_emb(queries, torch.arange(first, first + count)[None])
        eye = torch.eye(width, dtype=torch.float64)  # column by column
        return torch.stack([(eye * c + rotate_half(eye) * s).T for c, s in zip(cos[0], sin[0], strict=True)])

    keys = torch.einsum("tij,htj->hti", rotations(0, tokens), keys)
    average = rotations(tokens, future).mean(0)
    scores = torch.full(keys.shape[:2], math.inf, dtype=torch.float64)
    group = len(queries) // len(keys)
    for h, (own_keys, own_values) in enumerate(zip(keys[:, 4:], values[:, 4:], strict=True)):
        shares = []
        for query in queries[h * group : (h + 1) * group, 4:]:
            mean = average @ query.mean(0)
            covariance = average @ torch.cov(query.T, correction=0) @ average.T
            z = torch.stack(
                [torch.exp(mean @ k / math.sqrt(width) + k @ covariance @ k / (2 * width)) for k in own_keys]
            )
            shares.append(z / z.sum())
        scores[h, 4:] = (torch.stack(shares).mean(0) + epsilon) * own_values.norm(dim=-1)
    return scores


@pytest.mark.parametrize("settled", [False, True], ids=["a whole block", "settled"])
@torch.no_grad()
def test_the_score_is_the_papers(wild: PreTrainedModel, ids: Tensor, settled: bool) -> None:
    ids = ids[:, :90]
    policy = ExpectedAttention(budget=1.0, update_interval=120 if settled else 90, future=40, epsilon=0.02)
    cache = MemoryCache(wild, policy)
    seen: list[Tensor] = []
    own = policy.scores
    policy.scores = lambda head: seen.append(own(head)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    wild(ids, past_key_values=cache)
    cache.settle()
    expected = torch.cat([dense(wild, ids, layer, future=40, epsilon=0.02) for layer in range(2)])
    torch.testing.assert_close(torch.stack(seen[:4]).double(), expected, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_sinks_stay_and_heads_of_a_layer_share(wild: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(wild, ExpectedAttention(budget=0.25, update_interval=64))
    wild(ids[:, :256], past_key_values=cache)
    cache.check()
    for layer, kept in zip(cache.positions(), cache.stats().kept, strict=True):
        assert all(head[:4].tolist() == [0, 1, 2, 3] for head in layer[0])
        assert sum(kept[0]) == 2 * 64
    assert len({count for layer in cache.stats().kept for count in layer[0]}) > 1


def test_a_model_without_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(ValueError, match="policy that does not look at queries"):
        MemoryCache(model, ExpectedAttention())
