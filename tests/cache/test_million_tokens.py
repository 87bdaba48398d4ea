"""A million tokens through a tiny model, with bounded memory."""

from __future__ import annotations

import resource

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import NAMMPolicy, Streaming

TOKENS, CHUNK = 1_000_000, 20_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [NAMMPolicy(NAMM(NAMMConfig()), cap=256), Streaming(budget=256)], ids=["namm", "streaming"]
)
def test_a_million_tokens_stream_through_bounded_memory(policy) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=100,
        max_position_embeddings=TOKENS,
    )
    model = LlamaForCausalLM(config).eval()
    cache = MemoryCache(model, policy)
    generator = torch.Generator().manual_seed(0)
    resident = []
    with torch.inference_mode():
        for _ in range(TOKENS // CHUNK):
            ids = torch.randint(0, 100, (1, CHUNK), generator=generator)
            output = model(ids, past_key_values=cache, logits_to_keep=1).logits
            stats = cache.stats()
            unfinished = cache.get_seq_length() % (policy.update_interval or 1)
            assert stats.kept_tokens <= 256 + unfinished
            assert stats.held_bytes <= 2 * 1024 * (256 + 512) * 4
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    cache.check()
    assert torch.isfinite(output).all()
    assert cache.stats().seen == (TOKENS,)
    settled = len(resident) // 5
    assert resident[-1] - resident[settled] < 64 * 1024, "the process grew by more than 64 MiB after its first fifth"
