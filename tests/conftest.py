from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@pytest.fixture(scope="session")
def tiny() -> PreTrainedModel:
    """A random Llama with grouped heads, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=200,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 200, (1, 300), generator=torch.Generator().manual_seed(1))
