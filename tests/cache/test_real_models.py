"""With the policy `full`, real models answer as they do under transformers' own cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from namm import MemoryCache, ModelNotFoundError, load_model
from namm.policies import H2O, Full, NAMMPolicy
from namm.tasks import packaged_prose

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def real(request: pytest.FixtureRequest):
    try:
        return load_model(request.param)
    except ModelNotFoundError as error:
        pytest.skip(str(error))


def prompt(tokenizer, tokens: int) -> Tensor:
    return tokenizer(packaged_prose("demo")[0].text, return_tensors="pt").input_ids[:, :tokens]


def plain_logits(model, ids: Tensor, **kwargs: Tensor) -> Tensor:
    """Under transformers' own sdpa."""
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return model(ids, past_key_values=DynamicCache(config=model.config), **kwargs).logits.float()


def rounding(model, ids: Tensor) -> float:
    """How far bfloat16 alone moves this model's logits: root mean square against float32, which itself is exact."""
    if model.dtype == torch.float32:
        return 1e-3
    exact = plain_logits(model.float(), ids)
    return float((plain_logits(model.bfloat16(), ids) - exact).square().mean().sqrt())


def test_full_equals_sdpa_in_one_call_in_pieces_and_in_a_batch(real) -> None:
    model, tokenizer = real
    ids = prompt(tokenizer, 700)
    expected = plain_logits(model, ids)
    allowed = 1.5 * rounding(model, ids)

    def difference(found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).square().mean().sqrt())

    with torch.inference_mode():
        whole = model(ids, past_key_values=MemoryCache(model, Full())).logits.float()
        cache = MemoryCache(model, Full())
        pieces = torch.cat(
            [model(part, past_key_values=cache).logits for part in ids.split([400, 1, 299], 1)], 1
        ).float()
        short = torch.cat([torch.zeros(1, 200, dtype=torch.long), ids[:, :500]], dim=1)
        mask = torch.ones(2, 700, dtype=torch.long)
        mask[1, :200] = 0
        batch = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        both = model(torch.cat([ids, short]), past_key_values=MemoryCache(model, Full()), **batch).logits.float()
    assert difference(whole, expected) <= allowed
    assert difference(pieces, expected) <= allowed
    assert difference(both[0], expected[0]) <= allowed
    assert difference(both[1, 200:], expected[0, :500]) <= allowed


def test_greedy_generation_is_the_same(real) -> None:
    model, tokenizer = real
    ids = prompt(tokenizer, 600)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    model.set_attn_implementation("sdpa")
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, past_key_values=MemoryCache(model, Full()), **options), expected)


def test_the_shipped_memory_forgets_and_the_text_goes_on(real) -> None:
    from namm import NAMM

    model, tokenizer = real
    ids = prompt(tokenizer, 1100)
    cache = MemoryCache(model, NAMMPolicy(NAMM.from_pretrained("universal")))
    with torch.inference_mode():
        output = model(ids, past_key_values=cache).logits
    cache.check()
    stats = cache.stats()
    assert torch.isfinite(output).all()
    assert 0.05 < stats.kept_fraction < 0.9
    assert stats.held_bytes < stats.full_bytes


def test_bytes_held_are_those_of_what_is_kept(real) -> None:
    model, tokenizer = real
    cache = MemoryCache(model, H2O(budget=0.25))
    with torch.inference_mode():
        model(prompt(tokenizer, 2048), past_key_values=cache, logits_to_keep=1)
    stats = cache.stats()
    assert stats.kv_bytes <= 1.15 * stats.logical_kv_bytes and stats.kv_bytes <= 0.3 * stats.full_bytes
