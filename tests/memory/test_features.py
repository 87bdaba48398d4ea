from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.memory.birth import birth_rows
from namm.memory.features import SINKS, network_features, observe, observed, within_head
from namm.policies import NAMMPolicy

CONFIG = NAMMConfig(
    update_interval=32,
    ema=(0.99, 0.999),
    compression="log",
    normalised=True,
    bands=((0, 0), (1, 16)),
    birth=True,
    key_value=True,
    standardised=True,
    reach=256,
)


def test_counts() -> None:
    assert CONFIG.observed == 4 + 8 + 4 and CONFIG.features == 8 + 2 * 16
    memory = NAMM(CONFIG)
    assert memory.flat.shape == (CONFIG.parameters,) == (6617,)
    state = replace(CONFIG, state_dtype="bfloat16").state
    spent = sum(np.prod(column.shape) * column.dtype.itemsize for column in state.values()) + torch.int32.itemsize
    assert spent <= 0.12 * 2 * 64 * torch.bfloat16.itemsize  # of K and V at head size 64


def test_within_head_is_the_standard_score_without_the_sinks() -> None:
    found = torch.randn(40, 3) * torch.tensor([1.0, 5.0, 0.0]) + 7
    found[:SINKS] = 1e4
    relative, level = within_head(found)
    others = found[SINKS:].double().numpy()
    expected = (others - others.mean(0)) / np.maximum(others.std(0), 1e-3)
    np.testing.assert_allclose(relative[SINKS:].numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(level[0].numpy(), others.mean(0), rtol=1e-5)
    assert relative.abs().max() <= 6


def test_the_network_sees_age_then_what_is_relative_then_levels() -> None:
    found, ages = torch.randn(30, CONFIG.observed), torch.arange(29, -1, -1)
    mean, variance = torch.randn(CONFIG.observed), torch.rand(CONFIG.observed) + 0.5
    seen = network_features(found, ages, CONFIG, mean, variance)
    relative, level = within_head(found)
    torch.testing.assert_close(seen[:, 8:24], relative)
    torch.testing.assert_close(seen[:, 24:], ((level - mean) / variance.sqrt()).expand(30, -1))
    plain = network_features(found, ages, replace(CONFIG, standardised=False), mean, variance)
    torch.testing.assert_close(plain[:, 8:], (found - mean) / variance.sqrt())


def test_birth_rows_stay_and_the_spectrogram_moves_on() -> None:
    attention = torch.rand(CONFIG.spectrogram.carry + 32, 48).softmax(-1)
    columns = {name: torch.zeros(48, *column.shape) for name, column in CONFIG.state.items()}
    columns["positions"] = torch.arange(48)
    columns["birth"][:16] = 5.0
    observe(columns, attention, 32, CONFIG)
    assert (columns["birth"][:16] == 5).all()
    torch.testing.assert_close(columns["birth"][16:], birth_rows(attention[-32:], columns["positions"]))
    assert (columns["spectrogram"] > 0).all()


def everything(cache: MemoryCache, policy: NAMMPolicy) -> list[torch.Tensor]:
    heads = [row.store.head(h) for layer in cache.layers for row in layer.rows for h in range(row.store.heads)]
    return [observed(head, policy.memory.config) for head in heads]


@pytest.mark.parametrize("left", [0, 5])
def test_blocks_of_a_prompt_and_of_decoding_are_observed_alike(tiny: PreTrainedModel, left: int) -> None:
    """Read at once, token by token, and padded on the left beside another row."""
    ids = torch.randint(0, 60, (1, 96), generator=torch.Generator().manual_seed(1))
    config = replace(CONFIG, hidden=8)
    flat = NAMM(config).flat
    policy = NAMMPolicy(NAMM(config, flat), offset=0.0)
    with torch.inference_mode():
        at_once, singly, padded = (MemoryCache(tiny, policy) for _ in range(3))
        tiny(ids, past_key_values=at_once)
        for token in ids[0]:
            tiny(token[None, None], past_key_values=singly)
        mask = torch.ones(2, 96 + left, dtype=torch.long)
        mask[0, :left] = 0
        rows = torch.cat([torch.nn.functional.pad(ids, (left, 0)), torch.cat([ids, ids[:, :left]], 1)])
        tiny(rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), past_key_values=padded)
    kept = at_once.positions()
    for other in (singly, padded):
        for layer, own in enumerate(kept):
            assert all(torch.equal(a, b) for a, b in zip(own[0], other.positions()[layer][0], strict=True))
    one = everything(at_once, policy)
    for found, other in zip(one, everything(singly, policy), strict=True):
        torch.testing.assert_close(found, other, atol=5e-3, rtol=1e-3)
    assert any(len(found) < 96 for found in one)
