from __future__ import annotations

import pytest
import test_rope
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3TextConfig,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.models.gemma3 import Gemma3ForCausalLM

from namm.models.rope import Rotary, rotary_of

SMALL = test_rope.SMALL | {"pad_token_id": 0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def queries(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a model's first full-attention layer, ``[heads, tokens, width]``: before and after it turns them."""
    seen: list[torch.Tensor] = []
    layer = next(m for m in model.modules() if hasattr(m, "q_proj") and not getattr(m, "is_sliding", False))
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watch(module, query, *arguments, **options):
        if module is layer:
            seen.append(query[0])
        return own(module, query, *arguments, **options)

    last = getattr(layer, "q_norm", None) or layer.q_proj

    def note(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> None:
        heads = output if output.ndim == 4 else output.view(*ids.shape, -1, layer.head_dim)
        seen.append((heads if heads.shape[1] == ids.shape[1] else heads.transpose(1, 2))[0].transpose(0, 1))

    handle = last.register_forward_hook(note)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = watch
    try:
        model(ids)
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = own
        handle.remove()
    before, after = seen
    return before, after


MODELS = {
    "halves": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "scaled": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
    "neighbours": lambda: CohereForCausalLM(CohereConfig(**SMALL)),
    "in part": lambda: GlmForCausalLM(GlmConfig(**SMALL)),
    "by layers": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, layer_types=["sliding_attention", "full_attention"])
    ),
}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_queries_are_turned_as_the_model_turns_them(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    before, after = queries(model, torch.arange(1, 41)[None])
    rotary, positions = rotary_of(model), torch.arange(40)
    torch.testing.assert_close(rotary.turned(before, positions), after, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rotary.turned_back(after, positions), before, atol=1e-5, rtol=1e-4)
    every = rotary.turned(before[:, :1].expand(-1, 40, -1), positions)
    torch.testing.assert_close(rotary.turned_on_average(before[:, 0], positions), every.mean(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before[:, 1:], after[:, 1:], atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)),
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=DYNAMIC)),
        lambda: SmolLM3ForCausalLM(SmolLM3Config(**SMALL, no_rope_layers=[1, 0])),
    ],
    ids=["none", "changing", "in some layers"],
)
def test_what_is_not_known_is_refused(make) -> None:
    with pytest.raises(ValueError, match="in a way that is not known"):
        rotary_of(make())


def test_pairs_keep_their_length() -> None:
    rotary = Rotary(torch.tensor([1.0, 0.1]), interleaved=True, scaling=1.0)
    vectors = torch.randn(3, 5, 4, dtype=torch.float64)
    turned = rotary.turned(vectors, torch.arange(5))
    torch.testing.assert_close(turned[..., :2].norm(dim=-1), vectors[..., :2].norm(dim=-1))
