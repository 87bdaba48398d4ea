"""Models that see: frames go through the memory like text. Small ones with random weights, in transformers' classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

import namm
from namm.policies import H2O, Full, NAMMPolicy, Policy

IMAGE, VIDEO, START, END = 120, 121, 122, 123
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FRAMES = 6


def words(tokens: int) -> Tensor:
    return torch.randint(3, 100, (1, tokens), generator=torch.Generator().manual_seed(tokens))


def llava() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaNextVideoConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7, **sizes},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        spatial_pool_stride=2,
    )
    seen = torch.full((1, FRAMES * 4), VIDEO)  # 16 patches a frame, pooled two by two
    return LlavaNextVideoForConditionalGeneration(config), {
        "input_ids": torch.cat([words(5), seen, words(40)], dim=1),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, 28, 28),
    }


def qwen() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config={"model_type": "qwen2_vl_text", "rope_parameters": rope, **TEXT},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 7},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    grid = torch.tensor([[FRAMES // 2, 4, 4]])  # pairs of frames of 16 patches, merged two by two
    ids = torch.cat(
        [words(5), torch.tensor([[START]]), torch.full((1, FRAMES * 2), VIDEO), torch.tensor([[END]]), words(40)], dim=1
    )
    return Qwen2VLForConditionalGeneration(config), {
        "input_ids": ids,
        "pixel_values_videos": torch.randn(int(grid.prod()), 3 * 2 * 7 * 7),
        "video_grid_thw": grid,
        "mm_token_type_ids": (ids == VIDEO).long() * 2,
    }


MODELS: Mapping[str, Callable[[], tuple[PreTrainedModel, dict[str, Any]]]] = {
    "LLaVA-NeXT-Video": llava,
    "Qwen2-VL": qwen,
}


@pytest.fixture(params=MODELS)
def seeing(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = MODELS[request.param]()
    return model.eval(), inputs


@torch.no_grad()
def test_keeping_everything_equals_transformers_own_cache(seeing) -> None:
    model, inputs = seeing
    expected = model(**inputs).logits
    blind = model(**inputs | {"pixel_values_videos": torch.zeros_like(inputs["pixel_values_videos"])}).logits
    assert (blind - expected).abs().max() > 1e-4, "the frames matter"
    cache = namm.MemoryCache(model, Full())
    torch.testing.assert_close(model(**inputs, past_key_values=cache).logits, expected, rtol=1e-5, atol=1e-5)
    plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    cache = namm.MemoryCache(model, Full())
    assert torch.equal(model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False), plain)


@pytest.mark.parametrize("policy", [NAMMPolicy(namm.NAMM(namm.NAMMConfig(update_interval=16))), H2O(0.5, 16)])
def test_frames_are_forgotten_like_text(seeing, policy: Policy) -> None:
    model, inputs = seeing
    cache = namm.MemoryCache(model, policy)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    cache.check()
    frames = set((inputs["input_ids"][0] == VIDEO).nonzero().squeeze(-1).tolist())
    held = [set(positions.tolist()) for layer in cache.positions() for positions in layer[0]]
    assert any(frames - own for own in held), "some head has forgotten some of a frame"
    assert cache.stats().seen == (inputs["input_ids"].shape[1] + 19,)
