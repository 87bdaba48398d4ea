"""After `generate`, the cache that was given must be the one that was used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from namm import MemoryCache, UnsupportedModelError
from namm.policies import H2O, Full, Streaming

SWITCH = 40
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 200,
    "original_max_position_embeddings": SWITCH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "sliding_window": None,
    "initializer_range": 0.3,
}


def longrope(**more: object) -> dict[str, object]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [3.0] * 8,
        "original_max_position_embeddings": SWITCH,
    } | more


def make(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    rope = longrope(short_mscale=1.1, long_mscale=1.2) if kind == "phimoe" else longrope()
    extra = {"num_local_experts": 2, "num_experts_per_tok": 1} if kind == "phimoe" else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **extra, rope_parameters=rope)).eval()


@pytest.fixture(params=["phi3", "phimoe"])
def phi(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make(request.param)


def text(count: int) -> Tensor:
    return torch.randint(3, 200, (1, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.fault("A2", siblings="Phi-3, Phi-4 and PhiMoE, at the prompt and in a later turn")
def test_a_long_prompt_goes_into_the_cache_that_was_given(phi: PreTrainedModel) -> None:
    prompt, options = text(SWITCH + 15), {"max_new_tokens": 6, "do_sample": False}
    expected = phi.generate(prompt, past_key_values=DynamicCache(config=phi.config), **options)
    cache = MemoryCache(phi, Full())
    assert torch.equal(phi.generate(prompt, past_key_values=cache, **options), expected)
    assert cache.stats().seen == (SWITCH + 15 + 5,)
    forgetting = MemoryCache(phi, Streaming(0.5, update_interval=16))
    phi.generate(prompt, past_key_values=forgetting, **options)
    assert forgetting.stats().kept_fraction < 0.8


@pytest.mark.fault("A2")
def test_crossing_into_other_positions_while_generating_is_named(phi: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=f"rotary positions past {SWITCH} tokens"):
        phi.generate(text(SWITCH - 3), past_key_values=MemoryCache(phi, Full()), max_new_tokens=9, do_sample=False)
    short = MemoryCache(phi, Full())
    phi.generate(text(20), past_key_values=short, max_new_tokens=9, do_sample=False)
    assert short.stats().seen == (28,)


@pytest.mark.fault("D23", siblings="stores and query buffers of every rule")
@torch.no_grad()
def test_a_short_prompt_holds_what_it_needs() -> None:
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SHAPE.items() if k != "sliding_window"})).eval()
    for tokens in (13, 50, 200):
        cache = MemoryCache(model, Streaming(0.5))
        model(text(tokens), past_key_values=cache)
        stats = cache.stats()
        assert stats.query_bytes == 0 and stats.kv_bytes <= stats.full_bytes * 1.25
        looking = MemoryCache(model, H2O(0.5))
        model(text(tokens), past_key_values=looking)
        queries = tokens * 4 * 16 * 4 * 2  # what was asked since the last decision: tokens, heads, width, bytes, layers
        assert looking.stats().query_bytes == queries
