from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3 import Gemma3ForCausalLM

from namm.models.rope import extend_window

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


def test_positions_are_those_of_a_model_made_with_the_larger_base() -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}))
    base = 10_000.0 * 4 ** (16 / 14)
    larger = LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": base}))
    larger.load_state_dict(plain.state_dict())
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before, expected = plain(ids).logits, larger(ids).logits
        extend_window(plain, 4.0)
        found = plain(ids).logits
    assert not torch.allclose(before, expected, atol=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert plain.config.max_position_embeddings == 256


def test_sliding_layers_keep_their_frequencies() -> None:
    config = Gemma3TextConfig(**SMALL, layer_types=["sliding_attention", "full_attention"])
    model = Gemma3ForCausalLM(config)
    rotary = model.model.rotary_emb
    sliding, full = rotary.sliding_attention_inv_freq.clone(), rotary.full_attention_inv_freq.clone()
    extend_window(model, 2.0)
    assert torch.equal(rotary.sliding_attention_inv_freq, sliding)
    assert float(rotary.full_attention_inv_freq[-1] / full[-1]) == pytest.approx(0.5)
    assert float(rotary.full_attention_inv_freq[0] / full[0]) == pytest.approx(1.0)


def test_what_cannot_be_stretched_is_refused() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(ValueError, match="no rotary positions"):
        extend_window(gpt, 2.0)
    llama = LlamaForCausalLM(LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match="at least 1"):
        extend_window(llama, 0.5)
