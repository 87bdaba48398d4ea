"""Tokens that score alike stay from everywhere, if scores are spread."""

from __future__ import annotations

import pytest
import torch

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import NAMMPolicy

CONFIG = NAMMConfig(update_interval=32, hidden=8, kept=0.25)


def indifferent() -> NAMM:
    """A memory to which all tokens are alike."""
    memory = NAMM(CONFIG)
    return NAMM(CONFIG, torch.zeros_like(memory.flat))


def held(model, ids, spread: float) -> list[torch.Tensor]:
    cache = MemoryCache(model, NAMMPolicy(indifferent(), spread=spread))
    with torch.no_grad():
        model(ids, past_key_values=cache)
    cache.settle()
    assert cache.stats().kept_fraction == pytest.approx(0.25, abs=0.01)
    return [head for layer in cache.positions() for head in layer[0]]


def test_of_tokens_that_score_alike_no_long_run_goes(wild, ids) -> None:
    heads = held(wild, ids, 1.0)
    assert all(int(torch.diff(head).max()) <= 8 for head in heads), "every fourth stays on average"
    assert any(not torch.equal(heads[0], head) for head in heads[1:]), "all heads hold the same"
    alike = held(wild, ids, 0.0)
    assert max(int(torch.diff(head).max()) for head in alike if len(head) > 1) > 8


def test_scores_move_by_half_of_the_spread_at_most(wild, ids) -> None:
    seen: list[torch.Tensor] = []

    class Noted(NAMMPolicy):
        def note(self, heads, scores, keep) -> None:
            seen.extend(own[: head.tokens - head.undecided] for head, own in zip(heads, scores, strict=True))

    for spread in (0.0, 0.5):
        seen.clear()
        cache = MemoryCache(wild, Noted(indifferent(), spread=spread))
        with torch.no_grad():
            wild(ids[:, :64], past_key_values=cache)
        cache.settle()
        found = torch.cat(seen)
        assert found.abs().max() <= spread / 2 and abs(float(found.mean())) < 0.02


@pytest.mark.parametrize("spread", [-1.0, float("nan"), float("inf")])
def test_a_spread_is_no_negative_number(spread: float) -> None:
    with pytest.raises(ValueError, match="spread is"):
        NAMMPolicy(indifferent(), spread=spread)
