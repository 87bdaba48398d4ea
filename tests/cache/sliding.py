"""A small model with a layer of full attention between two with windows."""

from __future__ import annotations

import torch
from transformers import Gemma3TextConfig
from transformers.models.gemma3 import Gemma3ForCausalLM


def sliding() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        initializer_range=0.3,
    )
    return Gemma3ForCausalLM(config).eval()
