"""Which of transformers' families are served: each exactly, or refused with its reason before a token is generated.

python tests/cache/test_model_support.py     # write the table of docs/models.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import test_vision
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    MllamaForCausalLM,
    PreTrainedModel,
)
from transformers.generation.streamers import BaseStreamer

import namm
from namm.policies import Full, Streaming

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- model support: begin -->", "<!-- model support: end -->"
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 64, "n_ctx": 512}
GEMMA3N = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "altup_num_inputs": 2,
    "laurel_rank": 8,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "intermediate_size": [64, 64, 64],
    "activation_sparsity_pattern": [0.0, 0.0, 0.0],
}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@dataclass(frozen=True)
class Family:
    """A family with a small configuration.

    Attributes:
        options: of the configuration, beside `SMALL`.
        refused: part of the reason, for those that can't be served.
    """

    name: str
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""

    def make(self) -> PreTrainedModel:
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **(SMALL | self.options))
        if self.model_type == "mllama_text_model":  # which the automatic class does not know
            return MllamaForCausalLM(config).eval()
        return AutoModelForCausalLM.from_config(config).eval()


NO_INTERFACE = "does not go through transformers' attention interface"
LATENT = "has multi-head latent attention"
SHARED = "share the keys and values of others"
KEYS_CHANGED = "on keys or values that a MemoryCache handed to its attention"
FAMILIES = [
    Family("Llama 2, Llama 3", "llama"),
    Family(
        "Llama 4 (text)",
        "llama4_text",
        {"num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 16, "no_rope_layers": [1, 0, 1]},
    ),
    Family("Mistral", "mistral", {"sliding_window": None}),
    Family("Mixtral", "mixtral", {"num_local_experts": 4, "sliding_window": None}),
    Family("Qwen2", "qwen2"),
    Family("Qwen2-MoE", "qwen2_moe", {"num_experts": 4, "shared_expert_intermediate_size": 32, **EXPERTS}),
    Family("Qwen3", "qwen3", {"head_dim": 16}),
    Family("Qwen3-MoE", "qwen3_moe", {"num_experts": 4, "head_dim": 16, **EXPERTS}),
    Family("Phi", "phi"),
    Family("Phi-3, Phi-4", "phi3", {"sliding_window": None}),
    Family("Gemma", "gemma", {"head_dim": 16}),
    Family("Gemma 2", "gemma2", {"head_dim": 16, **SLIDING}),
    Family("Gemma 3 (text)", "gemma3_text", {"head_dim": 16, **SLIDING}),
    Family("GPT-OSS", "gpt_oss", {"head_dim": 16, "num_local_experts": 4, **SLIDING}),
    Family("SmolLM3", "smollm3"),
    Family("OLMo 2", "olmo2"),
    Family("Granite", "granite"),
    Family("Cohere", "cohere"),
    Family("GLM-4", "glm4", {"head_dim": 16}),
    Family("Nemotron", "nemotron"),
    Family("StableLM", "stablelm"),
    Family("StarCoder2", "starcoder2", {"sliding_window": None}),
    Family("GPT-2", "gpt2", GPT),
    Family("GPT-BigCode", "gpt_bigcode", GPT),
    Family("GPT-NeoX, Pythia", "gpt_neox"),
    Family("OPT", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 64}),
    Family("Jamba", "jamba", {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}),
    Family("LFM2", "lfm2", {"full_attn_idxs": [1]}),
    Family(
        "Qwen3-Next",
        "qwen3_next",
        {
            "num_experts": 4,
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            **EXPERTS,
        },
    ),
    Family("GPT-J", "gptj", {**GPT, "rotary_dim": 16}, NO_INTERFACE),
    Family("BLOOM", "bloom", {"n_layer": 3, "n_head": 4}, NO_INTERFACE),
    Family("Falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, NO_INTERFACE),
    Family("MPT", "mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}, NO_INTERFACE),
    Family(
        "DeepSeek-V3",
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            **EXPERTS,
        },
        LATENT,
    ),
    Family("Gemma 3n (text)", "gemma3n_text", {"head_dim": 16, "num_kv_shared_layers": 1, **GEMMA3N}, SHARED),
    Family("Mllama (text)", "mllama_text_model", {"cross_attention_layers": [1]}, "has cross-attention layers"),
    Family("DiffLlama", "diffllama", refused=KEYS_CHANGED),
    Family("RecurrentGemma", "recurrent_gemma", {"lru_width": 64}, "has no full-attention layer to forget in"),
    Family("Mamba", "mamba", {"state_size": 8}, "has no full-attention layer to forget in"),
]


def ids_of(tokens: int) -> torch.Tensor:
    return torch.randint(3, 128, (1, tokens), generator=torch.Generator().manual_seed(1))


def in_pieces(model: PreTrainedModel, cache: Cache) -> torch.Tensor:
    """Logits of a prompt in two calls and one token more."""
    parts = ids_of(90).split([50, 39, 1], dim=1)
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.refused], ids=lambda family: family.model_type)
def test_a_family_is_served_exactly(family: Family) -> None:
    model = family.make()
    expected = in_pieces(model, DynamicCache(config=model.config))
    cache = namm.MemoryCache(model, Full())
    torch.testing.assert_close(in_pieces(model, cache), expected, rtol=1e-5, atol=1e-5)
    cache.check()
    assert cache.stats().kept_fraction == 1.0
    forgetting = namm.MemoryCache(model, Streaming(budget=0.25, update_interval=16))
    output = model.generate(
        ids_of(90), past_key_values=forgetting, max_new_tokens=20, min_new_tokens=20, do_sample=False
    )
    forgetting.check()
    assert output.shape == (1, 110) and forgetting.stats().kept_fraction < 0.5


@pytest.mark.fault("A16", siblings="every kind of layer that is not plain self-attention with its own keys and values")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.refused], ids=lambda family: family.model_type)
def test_a_family_is_refused_before_a_token_is_generated(family: Family) -> None:
    model, streamed = family.make(), []

    class Listener(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            streamed.append(value)

        def end(self) -> None: ...

    with pytest.raises(namm.UnsupportedModelError, match=family.refused):
        cache = namm.MemoryCache(model, Full())
        model.generate(ids_of(9), past_key_values=cache, max_new_tokens=2, streamer=Listener())
    assert len(streamed) <= 1, "the prompt at most"


def table() -> str:
    """What these tests show, for docs/models.md."""
    short = {
        NO_INTERFACE: "no attention interface",
        KEYS_CHANGED: "cached keys are transformed",
        LATENT: "multi-head latent attention",
        SHARED: "layers that share keys and values",
        "has cross-attention layers": "cross-attention layers",
    }
    rows = {
        "served exactly": [family.name for family in FAMILIES if not family.refused],
        "with video, served exactly": list(test_vision.MODELS),
    }
    for family in FAMILIES:
        if family.refused:
            rows.setdefault(f"refused: {short.get(family.refused, 'no full-attention layer')}", []).append(family.name)
    lines = [f"| {heading} | {', '.join(names)} |" for heading, names in rows.items()]
    return "\n".join([BEGIN, "| | families |", "| --- | --- |", *lines, END])


def test_the_documents_say_so() -> None:
    assert table() in PAGE.read_text(), "the list is out of date: python tests/cache/test_model_support.py"


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :])
