"""What a later mask says of tokens that are cached already."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig, UnsupportedModelError
from namm.cache.layer import MemoryLayer
from namm.policies import BUDGETED, H2O, Full, NAMMPolicy, Policy, SnapKV

KEEP_ALL = [
    Full(),
    H2O(budget=1.0, update_interval=16),
    SnapKV(budget=1.0, update_interval=32),
    NAMMPolicy(NAMM(NAMMConfig(update_interval=16)), offset=1e9),
]
EVICTING = [rule(budget=0.5, update_interval=16) for rule in BUDGETED.values() if not rule.needs_rehearsal]
EVICTING.append(NAMMPolicy(NAMM(NAMMConfig(update_interval=16))))


def named(policy: Policy) -> str:
    return policy.name


def tokens(rows: int, count: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 200, (rows, count), generator=torch.Generator().manual_seed(seed))


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_min(0)


@pytest.mark.fault("A1", siblings="chunked prefill, beams and left padding take the same path, see the tests beside")
@pytest.mark.parametrize("policy", KEEP_ALL, ids=named)
def test_a_second_turn_of_a_batch_hides_the_padding_of_the_first(wild: PreTrainedModel, policy: Policy) -> None:
    first = tokens(3, 20)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 20}
    free = wild.generate(first, **options)
    stop = int(free[1, 27])  # a token that ends one row early
    turn = tokens(3, 10, seed=2)

    def two_turns(make) -> tuple[Tensor, Tensor, Tensor]:
        cache = make()
        answer = wild.generate(first, past_key_values=cache, eos_token_id=stop, **options)
        ids = torch.cat([answer, turn], dim=1)
        mask = (ids != 0).long()
        again = wild.generate(ids, attention_mask=mask, past_key_values=cache, eos_token_id=stop, **options)
        if isinstance(cache, MemoryCache):
            cache.check()
        return ids, mask, again

    ids, mask, expected = two_turns(lambda: DynamicCache(config=wild.config))
    assert not mask.all(), "a row ended early"
    _, _, found = two_turns(lambda: MemoryCache(wild, policy))
    scratch = wild.generate(ids, attention_mask=mask, eos_token_id=stop, **options)
    assert torch.equal(expected, scratch), "what is right"
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[40], [25, 15], [1] * 40], ids=["one call", "chunks", "decoding"])
@pytest.mark.parametrize("policy", KEEP_ALL, ids=named)
def test_half_of_what_is_cached_is_hidden(wild: PreTrainedModel, policy: Policy, pieces: list[int]) -> None:
    ids, new = tokens(2, 40), tokens(2, 12, seed=3)
    hidden = torch.rand(2, 40, generator=torch.Generator().manual_seed(4)) < 0.5
    hidden[0, -5:] = True  # the newest too
    mask = torch.cat([(~hidden).long(), torch.ones(2, 12, dtype=torch.long)], dim=1)
    cache, plain = MemoryCache(wild, policy), DynamicCache(config=wild.config)
    for piece in ids.split(pieces, dim=1):
        wild(piece, past_key_values=cache)
    wild(ids, past_key_values=plain)
    where = torch.arange(40, 52).expand(2, -1)
    options = {"attention_mask": mask, "position_ids": where}
    expected = wild(new, past_key_values=plain, **options).logits
    found = wild(new, past_key_values=cache, **options).logits
    cache.check()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert cache.stats().seen == tuple((mask.sum(1)).tolist())
    more = tokens(2, 1, seed=5)  # and they stay hidden
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    options = {"attention_mask": mask, "position_ids": where[:, -1:] + 1}
    expected = wild(more, past_key_values=plain, **options).logits
    torch.testing.assert_close(wild(more, past_key_values=cache, **options).logits, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("policy", EVICTING, ids=named)
def test_hidden_tokens_are_gone_under_every_rule_and_the_rest_goes_on(wild: PreTrainedModel, policy: Policy) -> None:
    ids = tokens(2, 60)
    ids[1, :7] = 0
    mask = (ids != 0).long()
    cache = MemoryCache(wild, policy)
    wild(ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache)
    later = mask.clone()
    later[:, 10:30] = 0
    for step in range(40):  # over several updates
        later = torch.cat([later, torch.ones(2, 1, dtype=torch.long)], dim=1)
        where = positions(later)[:, -1:]
        out = wild(tokens(2, 1, step), attention_mask=later, position_ids=where, past_key_values=cache)
        cache.check()
        assert torch.isfinite(out.logits).all()
    assert cache.stats().seen == tuple(later.sum(1).tolist())
    cache.settle()
    cache.check()


@torch.no_grad()
def test_moved_rows_keep_what_was_hidden_from_them(wild: PreTrainedModel) -> None:
    ids, new = tokens(2, 30), tokens(1, 6, seed=3).repeat(3, 1)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :11] = 0
    caches = MemoryCache(wild, Full()), DynamicCache(config=wild.config)
    order = torch.tensor([1, 1, 0])
    later = torch.cat([mask[order], torch.ones(3, 6, dtype=torch.long)], dim=1)
    later[1, 20] = 0
    logits = []
    for cache in caches:
        wild(ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache)
        cache.batch_select_indices(order)
        logits.append(
            wild(new, attention_mask=later, position_ids=positions(later)[:, -6:], past_key_values=cache).logits
        )
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_right_padding_in_the_middle_of_a_text(wild: PreTrainedModel) -> None:
    ids, new = tokens(2, 30), tokens(2, 8, seed=3)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, 19:] = 0
    later = torch.cat([mask, torch.ones(2, 8, dtype=torch.long)], dim=1)
    cache, plain = MemoryCache(wild, KEEP_ALL[3]), DynamicCache(config=wild.config)
    found, expected = (
        [
            wild(part, attention_mask=m, position_ids=positions(m)[:, -part.shape[1] :], past_key_values=each).logits
            for part, m in ((ids, mask), (new, later))
        ]
        for each in (cache, plain)
    )
    torch.testing.assert_close(found[1], expected[1], atol=1e-3, rtol=1e-3)
    assert cache.stats().seen == (38, 27)


@torch.no_grad()
def test_what_was_hidden_can_not_come_back(wild: PreTrainedModel) -> None:
    ids = tokens(1, 20)
    cache = MemoryCache(wild, Full())
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, :5] = 0
    wild(ids, attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match="can't come back"):
        wild(ids[:, :2], attention_mask=torch.ones(1, 22, dtype=torch.long), past_key_values=cache)
    wild(ids[:, :2], past_key_values=cache)  # a call without a mask says nothing of what is cached
    assert cache.stats().seen == (17,)


@pytest.mark.fault("A3", siblings="use_cache=False given to the model; a mask shorter than what is cached")
def test_generating_without_use_cache_is_named(wild: PreTrainedModel) -> None:
    cache = MemoryCache(wild, Full())
    with pytest.raises(UnsupportedModelError, match="use_cache = True"):
        wild.generate(tokens(1, 20), past_key_values=cache, use_cache=False, max_new_tokens=4)
    saved_after_checkpointing = copy.deepcopy(wild)
    saved_after_checkpointing.generation_config.use_cache = False
    with pytest.raises(UnsupportedModelError, match="use_cache = True"):
        MemoryCache(saved_after_checkpointing, Full())


@pytest.mark.fault("A20", siblings="a row without a token in any later statistic")
@torch.no_grad()
def test_a_row_of_padding_only(wild: PreTrainedModel) -> None:
    cache = MemoryCache(wild, H2O(0.5, 16))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1] = 0
    wild(tokens(2, 20), attention_mask=mask, past_key_values=cache)
    cache.check()
    assert cache.stats().seen == (20, 0) and cache.stats().kept_fractions[1] == 1.0
    cache.settle()
    assert cache.positions()[0][1][0].tolist() == []


def test_a_padded_prompt_makes_no_mask_of_prompt_by_prompt(wild: PreTrainedModel, monkeypatch) -> None:
    seen = []
    own = MemoryLayer.attend

    def attend(self, query, mask, form):
        seen.append(mask)
        return own(self, query, mask, form)

    monkeypatch.setattr(MemoryLayer, "attend", attend)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :5] = 0
    with torch.no_grad():
        wild(tokens(2, 20), attention_mask=mask, past_key_values=MemoryCache(wild, Full()))
    assert seen == [None, None]


@pytest.mark.fault("E", siblings="what is noted of a 2-D mask is one bit a token, and nothing where all are real")
@torch.no_grad()
def test_no_mask_of_a_prompt_is_held_through_decoding(wild: PreTrainedModel) -> None:
    ids = tokens(1, 30)
    padded = torch.ones(30, 30, dtype=torch.bool).tril()[None, None].repeat(1, 1, 1, 1)
    padded[..., :4] = False
    gone = weakref.ref(padded)
    cache = MemoryCache(wild, Full())
    wild(ids, attention_mask=padded, past_key_values=cache)
    assert cache.stats().seen == (26,)
    del padded
    wild(ids[:, :1], past_key_values=cache)
    gc.collect()
    assert gone() is None
    whole = MemoryCache(wild, Full())
    wild(ids, attention_mask=torch.ones(1, 30, dtype=torch.long), past_key_values=whole)
    assert whole.padding.visible is None
