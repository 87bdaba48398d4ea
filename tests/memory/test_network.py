from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import namm.memory.network
from namm.memory.network import QUERY_TILE, REACH_TILE, initial_parameters, parameter_count, token_scores, unflatten


def reference(features: np.ndarray, parts: dict[str, np.ndarray], heads: int, reach: int | None) -> np.ndarray:
    """Scores token by token in float64, from the definition."""
    projected = features @ parts["attention.qkv.weight"] + parts["attention.qkv.bias"]
    query, key, value = np.split(projected, 3, axis=1)
    width = query.shape[1] // heads
    scores = np.zeros(len(features))
    for i in range(len(features)):
        seen = slice(i, None if reach is None else i + reach + 1)
        read = np.zeros(query.shape[1])
        for h in range(heads):
            own = slice(h * width, (h + 1) * width)
            logits = key[seen, own] @ query[i, own] / np.sqrt(width)
            weights = np.exp(logits - logits.max())
            read[own] = (weights / weights.sum()) @ value[seen, own]
        residual, modulation = np.split(read @ parts["attention.output.weight"] + parts["attention.output.bias"], 2)
        hidden = features[i] * (1 + modulation) + residual
        scores[i] = hidden @ parts["score.weight"][:, 0] + parts["score.bias"][0]
    return scores


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 7, QUERY_TILE, QUERY_TILE + 1, 2 * QUERY_TILE + 5]),
    heads=st.sampled_from([1, 2, 4]),
    reach=st.sampled_from([None, 0, 1, 64, QUERY_TILE, QUERY_TILE + 1, 3 * QUERY_TILE]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_float64(tokens, heads, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(parameter_count(6, 8), dtype=torch.float64, generator=generator) * 0.5
    features = torch.randn(tokens, 6, dtype=torch.float64, generator=generator)
    parts = unflatten(flat, 6, 8)
    expected = reference(features.numpy(), {k: v.numpy() for k, v in parts.items()}, heads, reach)
    np.testing.assert_allclose(token_scores(features, parts, heads, reach).numpy(), expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, REACH_TILE - 1, REACH_TILE, REACH_TILE + 1, 300]), min_size=1, max_size=6),
    reach=st.sampled_from([None, 0, 1, REACH_TILE, 256]),
    tiles=st.sampled_from([1, 3, 256]),
    seed=st.integers(0, 2**16),
)
def test_heads_behind_one_another_are_scored_as_each_alone(lengths, reach, tiles, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = unflatten(torch.randn(parameter_count(6, 8), dtype=torch.float64, generator=generator) * 0.5, 6, 8)
    features = torch.randn(2, sum(lengths), 6, dtype=torch.float64, generator=generator)
    with mock.patch.object(namm.memory.network, "TILES", tiles):
        together = token_scores(features, weights, 2, reach, lengths)
    alone = [token_scores(own, weights, 2, reach) for own in features.split(lengths, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_padding_on_the_old_side_changes_nothing() -> None:
    weights = unflatten(torch.randn(parameter_count(6, 8)), 6, 8)
    features = torch.randn(3, 300, 6)
    alone = token_scores(features[:, 120:], weights)
    features[:, :120] = 1e3
    torch.testing.assert_close(token_scores(features, weights)[:, 120:], alone, rtol=1e-4, atol=1e-4)


def test_a_population_is_scored_at_once() -> None:
    flat = torch.randn(4, parameter_count(6, 8))
    features = torch.randn(4, 20, 6)
    together = token_scores(features, unflatten(flat, 6, 8))
    for member in range(4):
        alone = token_scores(features[member], unflatten(flat[member], 6, 8))
        torch.testing.assert_close(together[member], alone, rtol=1e-4, atol=1e-4)


def test_unflatten_copies_nothing_and_keeps_the_order() -> None:
    flat = torch.arange(4172.0)
    parts = unflatten(flat, 25, 32)
    assert torch.equal(torch.cat([part.flatten() for part in parts.values()]), flat)
    parts["score.bias"][0] = -1
    assert flat[-1] == -1
    assert parts["attention.qkv.weight"][1, 2] == 96 + 2


def test_a_wrong_length_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="4171 parameters given.*need 4172"):
        unflatten(torch.zeros(4171), 25, 32)


@pytest.mark.parametrize("reach", [None, 100])
def test_gradients_reach_every_parameter(reach: int | None) -> None:
    flat = initial_parameters(25, 32, torch.Generator().manual_seed(0)).requires_grad_()
    token_scores(torch.randn(2, QUERY_TILE + 9, 25), unflatten(flat, 25, 32), 1, reach).square().sum().backward()
    assert flat.grad is not None and (flat.grad != 0).float().mean() > 0.95
