from __future__ import annotations

import copy

import pytest
import torch
from test_cache import sliding
from torch import Tensor
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import Full, KVzip, NAMMPolicy, Policy
from namm.policies.base import REHEARSED
from namm.support.tensors import Column

INTERVAL = 48
INSTRUCTION = torch.tensor([5, 6, 7])


class Watching(Policy):
    """Keeps everything, or forgets by position alone; never minds what a rehearsal found."""

    update_interval = INTERVAL
    state = {REHEARSED: Column(), "mass": Column()}
    queries = None

    def __init__(self, forget: bool = False) -> None:
        self.forget = forget

    def observe(self, head):
        head.columns["mass"] += head.attention.float().sum(0)

    def keep(self, head):
        return head.positions % 3 != 1 if self.forget else head.positions >= 0


class Blind(Watching):
    """The same without a rehearsal."""

    state = {"mass": Column()}


def found(cache: MemoryCache, row: int = 0) -> list[list[dict[str, Tensor]]]:
    """``[layer][head]``: what is held of one batch row."""
    layers = [layer for layer in cache.layers if hasattr(layer, "rows")]
    return [[layer.rows[row].store.head(h) for h in range(layer.rows[row].store.heads)] for layer in layers]


def repetition(ids: Tensor, start: int, stop: int) -> Tensor:
    return torch.cat([INSTRUCTION, ids[0, max(0, start - 8) : stop]])[None]


def dense(model: PreTrainedModel, ids: Tensor, start: int, stop: int) -> list[Tensor]:
    """KVzip's score of the tokens from `start` to `stop`, ``[KV heads, tokens]`` float64 of each layer.

    All in one pass without a cache; the softmax is taken again over the tokens that count.
    """
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    whole = torch.cat([ids[:, :stop], repetition(ids, start, stop)], dim=1)
    scores = []
    for attention in exact(whole, output_attentions=True).attentions:
        counted = torch.tensor([*range(min(4, start)), *range(start, whole.shape[1])])
        logits = attention[0, :, stop:, counted].log()
        block = slice(min(4, start), min(4, start) + stop - start)
        shares = logits.softmax(-1)[..., block]
        groups = shares.view(model.config.num_key_value_heads, -1, *shares.shape[1:])
        scores.append(groups.amax((1, 2)))
    return scores


def test_what_is_found_is_the_papers_score(wild: PreTrainedModel, ids: Tensor) -> None:
    ids = ids[:, :130]
    cache = MemoryCache(wild, Watching())
    with torch.no_grad():
        cache.rehearse(ids, INSTRUCTION)
    for start, stop in ((0, 48), (48, 96), (96, 130)):
        for heads, expected in zip(found(cache), dense(wild, ids, start, stop), strict=True):
            for columns, right in zip(heads, expected, strict=True):
                actual = columns[REHEARSED][start:stop].double()
                torch.testing.assert_close(actual, right.clamp_min(2**-24), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("slides", [False, True], ids=["full layers", "sliding layers"])
def test_the_cache_is_as_without_a_rehearsal(wild: PreTrainedModel, ids: Tensor, slides: bool) -> None:
    model = sliding(spread=0.3) if slides else wild
    own = model.config._attn_implementation
    rehearsed, plain = MemoryCache(model, Watching(forget=True)), MemoryCache(model, Blind(forget=True))
    with torch.no_grad():
        logits = rehearsed.rehearse(ids[:, :200], INSTRUCTION)
        expected = model(ids[:, :200], past_key_values=plain, logits_to_keep=1).logits[:, -1]
        plain.settle()
    assert model.config._attn_implementation == own
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    for cache in (rehearsed, plain):
        cache.check()
        with torch.no_grad():
            cache.after = model(ids[:, 200:], past_key_values=cache).logits
    torch.testing.assert_close(rehearsed.after, plain.after, atol=1e-4, rtol=1e-3)
    assert rehearsed.stats().kept == plain.stats().kept and rehearsed.stats().seen == plain.stats().seen
    for layer, other in zip(found(rehearsed), found(plain), strict=True):
        for head, right in zip(layer, other, strict=True):
            assert torch.equal(head["positions"], right["positions"])
            torch.testing.assert_close(head["mass"], right["mass"], atol=1e-4, rtol=1e-3)
            rehearsed_tokens = head["positions"] < 200
            assert head[REHEARSED][rehearsed_tokens].all() and not head[REHEARSED][~rehearsed_tokens].any()
    for layer, other in zip(rehearsed.layers, plain.layers, strict=True):
        if not hasattr(layer, "rows"):
            torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-3)
            assert layer.cumulative_length == other.cumulative_length


@pytest.mark.parametrize("slides", [False, True], ids=["full layers", "sliding layers"])
def test_a_left_padded_batch_equals_single_texts(wild: PreTrainedModel, ids: Tensor, slides: bool) -> None:
    model = sliding(spread=0.3) if slides else wild
    lengths = (170, 131, 30, 170)
    batch = torch.zeros(4, 170, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, 170 - length :] = ids.roll(row)[0, :length]
    mask = (torch.arange(170) >= 170 - torch.tensor(lengths)[:, None]).long()
    together = MemoryCache(model, Watching(forget=True))
    with torch.no_grad():
        logits = together.rehearse(batch, INSTRUCTION, mask)
    together.check()
    for row, length in enumerate(lengths):
        alone = MemoryCache(model, Watching(forget=True))
        with torch.no_grad():
            expected = alone.rehearse(batch[row : row + 1, 170 - length :], INSTRUCTION)
        torch.testing.assert_close(logits[row], expected[0], atol=1e-4, rtol=1e-3)
        for layer, other in zip(found(together, row), found(alone), strict=True):
            for head, right in zip(layer, other, strict=True):
                assert torch.equal(head["positions"], right["positions"])
                torch.testing.assert_close(head[REHEARSED], right[REHEARSED], atol=1e-4, rtol=1e-2)


def test_what_came_before_the_text_is_not_rehearsed(wild: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(wild, Watching())
    with torch.inference_mode():
        wild(ids[:, :20], past_key_values=cache)
        cache.rehearse(ids[:, 20:70], INSTRUCTION)
    cache.check()
    for heads in found(cache):
        for head in heads:
            assert not head[REHEARSED][:20].any() and head[REHEARSED][20:].all()
    assert cache.layers[0].rows[0].updated == 70, "all is decided on"


def test_a_rehearsal_that_nothing_looks_at_is_refused(wild: PreTrainedModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="'full' does not look at a rehearsal"):
        MemoryCache(wild, Full()).rehearse(ids, INSTRUCTION)


def test_an_interrupted_rehearsal_is_noticed(wild: PreTrainedModel, ids: Tensor) -> None:
    cache, calls = MemoryCache(wild, Watching()), []

    def interrupt(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = wild.model.layers[1].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        cache.rehearse(ids, INSTRUCTION)
    handle.remove()
    with pytest.raises(RuntimeError, match="settle"):
        wild(ids, past_key_values=cache)
    cache.settle()
    with torch.no_grad():
        wild(ids, past_key_values=cache)
    cache.check()
    assert cache.stats().seen == (INTERVAL + ids.shape[1],)


@torch.no_grad()
def test_kvzip_keeps_the_best_of_the_model_by_the_papers_score(wild: PreTrainedModel, ids: Tensor) -> None:
    """A text of one block: nothing is forgotten before all scores are known, as in the paper."""
    ids = ids[:, :200]
    cache = MemoryCache(wild, KVzip(budget=0.25, update_interval=200))
    cache.rehearse(ids, INSTRUCTION)
    scores = torch.stack(dense(wild, ids, 0, 200))  # [layers, heads, tokens]
    scores[..., :4] = scores[..., -1] = 2.0
    expected = torch.zeros(scores.numel(), dtype=torch.bool)
    expected[scores.flatten().topk(scores.numel() // 4).indices] = True
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for layer, rows in enumerate(cache.positions()):
        for head, positions in enumerate(rows[0]):
            kept[layer, head, positions.long()] = True
    assert int(kept.sum()) == int(expected.sum())
    assert int((kept.flatten() != expected).sum()) <= 4, "but for ties of 16-bit numbers"


@torch.no_grad()
def test_kvzip_forgets_on_the_way_and_after(wild: PreTrainedModel, ids: Tensor) -> None:
    cache, held = MemoryCache(wild, KVzip(budget=0.25, update_interval=64)), []
    cache.rehearse(ids[:, :256], INSTRUCTION, progress=lambda tokens: held.append((tokens, cache.stats())))
    assert [(tokens, stats.kept_fraction) for tokens, stats in held] == [
        (64, 0.25),
        (128, 0.25),
        (192, 0.25),
        (256, 0.25),
    ]
    assert held[-1][1].kv_bytes <= 0.5 * held[-1][1].full_bytes, "memory is really freed"
    wild(ids[:, :64], past_key_values=cache)  # as if asked, and an answer given
    cache.check()
    assert cache.stats().kept_fraction == 0.25
    assert all(head[-64:].tolist() == list(range(256, 320)) for layer in cache.positions() for head in layer[0])


@torch.no_grad()
def test_kvzip_says_that_it_needs_a_rehearsal(wild: PreTrainedModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="KVzip decides by a rehearsal"):
        wild(ids, past_key_values=MemoryCache(wild, KVzip(update_interval=64)))


DISTILLED = NAMM(NAMMConfig(update_interval=INTERVAL, hidden=8, influence=(0.7, -3.0)))


def test_a_memory_counts_what_a_repetition_looked_up(wild: PreTrainedModel, ids: Tensor) -> None:
    """The score is that of the network, or of the influence that was seen, whichever is larger."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Guessing(NAMMPolicy):
        guess = 0.0

        def score(self, heads):
            return [self._with_rehearsal(head, torch.full((head.tokens,), self.guess)) for head in heads]

        def note(self, heads, scores, keep):
            for head, own in zip(heads, scores, strict=True):
                paid = head.columns[REHEARSED].double()
                known = 0.7 * (paid / (1 - paid).clamp_min(0.01) + 1e-5).log() + 3.0
                seen.append((own.double(), known))

    policy = Guessing(DISTILLED, offset=0.0, rehearsed=True)
    assert policy.rehearses and policy.needs_rehearsal
    for guess in (-1e6, 1e6, 0.5):
        policy.guess = guess
        MemoryCache(wild, policy).rehearse(ids[:, :INTERVAL], INSTRUCTION)
        assert len(seen) == 4
        for own, known in seen:
            torch.testing.assert_close(own, known.clamp_min(guess), rtol=1e-3, atol=1e-3)
        seen.clear()
    with torch.inference_mode():  # what was never rehearsed is as the network has it
        wild(ids[:, :INTERVAL], past_key_values=MemoryCache(wild, policy))
    assert len(seen) == 4 and all((own == 0.5).all() for own, _ in seen)


def test_a_rehearsal_changes_what_a_memory_keeps_and_holds_its_budget(wild: PreTrainedModel, ids: Tensor) -> None:
    held = []
    for rehearsed in (False, True):
        cache = MemoryCache(wild, NAMMPolicy(DISTILLED, kept=0.25, rehearsed=rehearsed))
        if rehearsed:
            cache.rehearse(ids, INSTRUCTION)
        else:
            with torch.inference_mode():
                wild(ids, past_key_values=cache)
            cache.settle()
        cache.check()
        assert cache.stats().kept_fraction == pytest.approx(0.25, abs=0.005)
        held.append([positions for layer in cache.positions() for positions in layer[0]])
    assert any(len(a) != len(b) or not torch.equal(a, b) for a, b in zip(*held, strict=True))


def test_a_memory_that_was_not_distilled_can_not_rehearse() -> None:
    with pytest.raises(ValueError, match="only a distilled memory"):
        NAMMPolicy(NAMM(NAMMConfig()), rehearsed=True)
