"""Budgets that all heads of a model share: met after `settle`, whatever was read and however."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import padded, run
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import H2O, L2, TOVA, NAMMPolicy, Policy, SnapKV, Streaming
from namm.policies.pool import ROOM, SLACK

INTERVAL = 64
MEMORY = NAMM(NAMMConfig(update_interval=INTERVAL, hidden=8))
SMALL = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 200, "max_position_embeddings": 4096, "head_dim": 16}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FORMS = {
    "multi-head": LlamaConfig(**SMALL, num_hidden_layers=3, num_attention_heads=4),
    "grouped": LlamaConfig(**SMALL, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2),
    "multi-query": LlamaConfig(**SMALL, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1),
    "one layer": LlamaConfig(**SMALL, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2),
    "sliding": Gemma3TextConfig(
        **SMALL,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=32,
        layer_types=SLIDING,
        query_pre_attn_scalar=16,
    ),
}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """Random models with weights so large that heads differ."""
    torch.manual_seed(0)
    for config in FORMS.values():
        config.initializer_range = 0.2
    return {name: AutoModelForCausalLM.from_config(config).eval() for name, config in FORMS.items()}


def policies(budget: float | int) -> list[Policy]:
    shared = {"budget": budget, "update_interval": INTERVAL, "across": "model"}
    aim = {"budget": budget} if isinstance(budget, int) else {"kept": budget}
    return [*(rule(**shared) for rule in (H2O, TOVA, L2, Streaming, SnapKV)), NAMMPolicy(MEMORY, **aim)]


def text(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 200, (1, tokens), generator=torch.Generator().manual_seed(seed))


def held(cache: MemoryCache, row: int = 0) -> list[int]:
    return [count for layer in cache.stats().kept for count in layer[row]]


def assert_met(cache: MemoryCache, budget: float | int, row: int = 0) -> None:
    counts, seen = held(cache, row), cache.stats().seen[row]
    wanted = min(seen, budget) if isinstance(budget, int) else budget * seen
    assert sum(counts) == round(len(counts) * wanted)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.125, 48])
@pytest.mark.parametrize("form", FORMS)
def test_a_budget_is_met_at_the_end_of_any_text(models, form: str, budget: float | int) -> None:
    """Also of one that ends with a block, or with too few tokens for one."""
    for policy in policies(budget):
        for tokens, pieces in ((256, []), (256 + 9, []), (300, [100, 1, 70])):
            cache = MemoryCache(models[form], policy)
            run(models[form], text(tokens), cache, pieces)
            cache.settle()
            cache.check()
            assert_met(cache, budget)
            before = cache.positions()
            cache.settle()  # once more: nothing is left to decide
            assert all(
                torch.equal(a, b)
                for was, now in zip(before, cache.positions(), strict=True)
                for a, b in zip(was[0], now[0], strict=True)
            )


def test_heads_and_layers_compete(models) -> None:
    for policy in policies(0.25):
        cache = MemoryCache(models["grouped"], policy)
        run(models["grouped"], text(300), cache, [])
        cache.settle()
        heads = {count for layer in cache.stats().kept for count in layer[0]}
        layers = {sum(layer[0]) for layer in cache.stats().kept}
        if policy.name == "streaming":
            assert heads == {75}
        else:
            assert len(heads) > 2 and len(layers) > 1


@pytest.mark.parametrize("policy", policies(0.25), ids=lambda policy: policy.name)
def test_a_padded_batch_is_settled_like_single_texts(models, policy: Policy) -> None:
    model, ids = models["grouped"], text(300)
    batch, mask, positions = padded(ids, 137)
    together = MemoryCache(model, policy)
    run(model, batch, together, [], attention_mask=mask, position_ids=positions)
    together.settle()
    together.check()
    for row, tokens in enumerate((300, 137)):
        assert_met(together, 0.25, row)
        alone = MemoryCache(model, policy)
        run(model, ids[:, :tokens], alone, [])
        alone.settle()
        assert held(alone) == held(together, row)


@pytest.mark.parametrize("policy", policies(0.25), ids=lambda policy: policy.name)
def test_it_is_met_again_after_decoding(models, policy: Policy) -> None:
    model, ids = models["grouped"], text(500)
    cache = MemoryCache(model, policy)
    run(model, ids[:, :200], cache, [])
    cache.settle()
    end = 200 + INTERVAL - cache.stats().undecided[0]
    run(model, ids[:, 200:end], cache, [1] * INTERVAL)  # a block of single tokens, after which layers are compared
    assert_met(cache, 0.25)
    run(model, ids[:, end:], cache, [1, 1, 150])
    cache.settle()
    cache.check()
    assert_met(cache, 0.25)


@pytest.mark.parametrize("budget", [0.25, 40])
def test_it_is_met_after_every_pass_that_ends_a_block(models, budget: float | int) -> None:
    """Without `settle`, by what was decided on; tokens of the unfinished block lie on top."""
    for policy in policies(budget):
        cache = MemoryCache(models["grouped"], policy)
        for piece in text(5 * INTERVAL + 30).split(INTERVAL + 10, dim=1):
            run(models["grouped"], piece, cache, [])
            stats = cache.stats()
            decided = stats.seen[0] - stats.undecided[0]
            even = min(decided, budget) if isinstance(budget, int) else budget * decided
            assert sum(held(cache)) == round(6 * even) + 6 * stats.undecided[0]
            cache.check()


def test_until_layers_are_compared_one_may_hold_more(models) -> None:
    """In one pass a layer is cut to two and a half shares when it holds 512 tokens a head more, not before."""
    asked: list[tuple[bool, int, int, int]] = []

    class Watched(NAMMPolicy):
        def note(self, heads, scores, keep):
            held, kept = sum(head.tokens for head in heads), sum(int(own.sum()) for own in keep)
            asked.append((heads[0].whole, heads[0].seen, held, kept))

    run(models["grouped"], text(ROOM), MemoryCache(models["grouped"], Watched(MEMORY, kept=0.25)), [])
    assert asked == [(True, ROOM, 6 * ROOM, 6 * ROOM // 4)]
    asked.clear()
    run(models["grouped"], text(2048), MemoryCache(models["grouped"], Watched(MEMORY, kept=0.25)), [])
    alone = [(seen, held, kept) for whole, seen, held, kept in asked if not whole]
    assert alone and asked[-1][3] == 6 * 512
    for seen, held, kept in alone:
        share = SLACK * 0.25 * seen
        assert kept == 2 * share and 2 * (share + ROOM) < held <= 2 * (share + ROOM + INTERVAL)


@torch.no_grad()
def test_what_a_mask_hides_was_given_to_no_layer(models) -> None:
    """Layers are decided on alone as if hidden tokens had never come: neither in what was read nor in what was kept."""
    asked: dict[int, tuple[int, int]] = {}

    class Watched(H2O):
        def select(self, heads):
            if not heads[0].whole:
                asked[heads[0].layer] = heads[0].compared
            return super().select(heads)

    model = models["grouped"]
    cache = MemoryCache(model, Watched(0.25, INTERVAL, across="model"))
    run(model, text(640), cache, [])
    visible = torch.ones(1, 640 + INTERVAL, dtype=torch.long)
    visible[:, 100:400] = 0
    kept = {layer: sum(int(visible[0, own].sum()) for own in rows[0]) for layer, rows in enumerate(cache.positions())}
    assert sum(kept.values()) < sum(held(cache))
    run(model, text(INTERVAL, seed=1), cache, [], attention_mask=visible)
    assert asked == {layer: (340, count) for layer, count in kept.items()}
    cache.check()


@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(1, 200),
    second=st.integers(0, 200),
    budget=st.one_of(st.integers(1, 100), st.floats(0.02, 1.0)),
    which=st.integers(0, 5),
)
def test_settling_in_between_leaves_no_debt(models, first: int, second: int, budget: float | int, which: int) -> None:
    """Whatever came before, a text is settled to its budget, as far as undecided tokens allow."""
    model, policy = models["grouped"], policies(budget)[which]
    cache = MemoryCache(model, policy)
    run(model, text(first), cache, [])
    cache.settle()
    cache.check()
    if second:
        run(model, text(second, seed=1), cache, [])
        cache.settle()
        cache.check()
    (seen,), (undecided,), counts = cache.stats().seen, cache.stats().undecided, held(cache)
    wanted = round(len(counts) * (min(seen, budget) if isinstance(budget, int) else budget * seen))
    assert sum(counts) <= max(wanted, len(counts) * max(1, undecided))
    if not isinstance(budget, int):
        assert sum(counts) >= wanted - 2


def test_a_cap_bounds_every_head_under_a_shared_budget(models) -> None:
    cache = MemoryCache(models["grouped"], NAMMPolicy(MEMORY, kept=0.25, cap=0.26))
    run(models["grouped"], text(300), cache, [])
    cache.settle()
    assert max(held(cache)) <= 78 and sum(held(cache)) <= 6 * 75 and len(set(held(cache))) > 1


def test_a_memory_that_keeps_a_fraction_by_itself(models) -> None:
    own = NAMM(NAMMConfig(update_interval=INTERVAL, hidden=8, kept=0.4))
    for policy, budget in (
        (NAMMPolicy(own), 0.4),
        (NAMMPolicy(own, kept=0.2), 0.2),
        (NAMMPolicy(own, budget=30), 30),
    ):
        cache = MemoryCache(models["grouped"], policy)
        run(models["grouped"], text(300), cache, [])
        cache.settle()
        assert_met(cache, budget)
    everything = MemoryCache(models["grouped"], NAMMPolicy(own, offset=1e9))
    run(models["grouped"], text(300), everything, [])
    everything.settle()
    assert everything.stats().kept_fraction == 1.0, "an offset judges every token by itself"


def test_scores_of_nan_are_refused_in_a_shared_budget(models) -> None:
    class Broken(H2O):
        def scores(self, head):
            return super().scores(head) * torch.nan

    cache = MemoryCache(models["grouped"], Broken(0.25, INTERVAL, across="model"))
    with pytest.raises(ValueError, match="NaN"):
        run(models["grouped"], text(100), cache, [])
