"""What is read once for all candidates is what each would have read for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from namm import NAMM, MemoryCache, NAMMConfig
from namm.evolution.reading import SharedReading
from namm.policies import Full, NAMMPolicy
from namm.policies.pool import ROOM

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9, 0.99), compression="log")


@pytest.fixture
def candidates() -> list[NAMM]:
    memory = NAMM(CONFIG)
    moved = memory.flat + 0.5 * torch.randn(3, len(memory.flat), generator=torch.Generator().manual_seed(0))
    moved[:, -1] += torch.linspace(-3, 3, 3)
    return [replace(memory, flat=flat) for flat in moved]


def alone(model, ids: torch.Tensor, policy) -> tuple[MemoryCache, torch.Tensor]:
    """From the beginning, in one call."""
    with torch.inference_mode():
        cache = MemoryCache(model, policy)
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        cache.settle()
    return cache, logits


def same_positions(one: MemoryCache, other: MemoryCache) -> bool:
    pairs = zip(one.positions(), other.positions(), strict=True)
    return all(torch.equal(a, b) for own, its in pairs for a, b in zip(own[0], its[0], strict=True))


@pytest.mark.parametrize("kept", [0.25, None])
@pytest.mark.parametrize("tokens", [1, 20, 32, 33, 100, 96, 96 + 17, ROOM, 1000, 1500])
def test_every_candidate_keeps_what_it_would_have_kept_alone(wild, candidates, tokens, kept):
    ids = torch.randint(1, 200, (1, tokens + 12), generator=torch.Generator().manual_seed(1))
    context, question, answer = (part[0] for part in ids.split([tokens, 7, 5], dim=1))
    shared = SharedReading.of(wild, context, candidates[0], kept)
    held = []
    for memory in candidates:
        policy = NAMMPolicy(memory, kept=kept)
        reading, (cache, logits) = shared.under(policy), alone(wild, context[None], policy)
        assert same_positions(reading.cache, cache)
        assert replace(reading.stats, shared_bytes=0) == cache.stats()
        torch.testing.assert_close(reading.logits, logits, rtol=1e-3, atol=1e-3)
        reading.cache.check()
        wanted = wild(torch.cat([question, answer[:-1]])[None], past_key_values=cache, logits_to_keep=5).logits
        wanted = wanted.log_softmax(-1)[0].gather(-1, answer[:, None])[:, 0]
        torch.testing.assert_close(reading.score(question, answer)[0][0], wanted, rtol=1e-3, atol=1e-3)
        held.append(tuple(torch.cat(layer[0]).tolist() for layer in cache.positions()))
    if tokens > 33 and kept:
        assert len(set(map(str, held))) == len(held), "all candidates keep the same: nothing was compared"


def test_the_full_cache_goes_on_from_the_shared_part_too(wild, candidates):
    ids = torch.randint(1, 200, (1, 100), generator=torch.Generator().manual_seed(1))
    for kept in (0.25, None):
        reading = SharedReading.of(wild, ids[0], candidates[0], kept).under(Full())
        assert reading.stats.kept_fraction == 1.0
        torch.testing.assert_close(reading.logits, wild(ids).logits[:, -1], rtol=1e-3, atol=1e-3)


def test_candidates_do_not_see_each_other(wild, candidates):
    context = torch.randint(1, 200, (200,), generator=torch.Generator().manual_seed(1))
    question, answer = context[:7], context[7:12]
    shared = SharedReading.of(wild, context, candidates[0], 0.25)

    def found(memory: NAMM) -> torch.Tensor:
        return shared.under(NAMMPolicy(memory, kept=0.25)).score(question, answer)[0]

    first, *_ = (found(memory) for memory in candidates)
    assert torch.equal(found(candidates[0]), first)


@pytest.mark.parametrize(
    ("kept", "tokens", "untouched"),
    [(0.25, 20, 20), (0.25, 1365, 1365), (0.25, 1376, 1375), (0.25, 4000, 1375), (None, 20, 20), (None, 40, 31)],
)
def test_a_text_is_read_by_all_until_a_layer_has_no_room(candidates, kept, tokens, untouched):
    """Two and a half times a quarter of the tokens and 512 more are fewer than the tokens from 1,366 on."""
    assert NAMMPolicy(candidates[0], kept=kept).untouched(tokens) == untouched


def test_the_part_before_the_first_eviction_goes_through_the_model_once(wild, candidates):
    context = torch.randint(1, 200, (200,), generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    hook = wild.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0].shape[1]), with_kwargs=True)
    try:
        shared = SharedReading.of(wild, context, candidates[0], 0.25)
        for memory in candidates:
            shared.under(NAMMPolicy(memory, kept=0.25))
    finally:
        hook.remove()
    assert seen == [200]
