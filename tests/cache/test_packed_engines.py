"""What `loops` pack, the other engines pack: the same codes, decisions and outputs, whatever happens to rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from launches import Operations
from layers import Layers, random_tokens
from test_padded import RULES, calls, compare, policy_of, same, shapes
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.cache.codes import BITS
from namm.cache.split_batch import SplitBatch
from namm.policies import Full, NAMMPolicy

LEFT = st.lists(st.integers(0, 30), min_size=3, max_size=3)


@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=shapes,
    calls=calls,
    left=LEFT,
    kind=st.sampled_from(["offset", "kept", "cap", "budget"]),
    rich=st.booleans(),
    bits=st.sampled_from(BITS),
    softcap=st.sampled_from([None, 3.0]),
    settled=st.sampled_from([None, [0], "all"]),
    between=st.sampled_from([None, "hide", "select"]),
    seed=st.integers(0, 999),
)
def test_padded_packs_as_loops_do(shape, calls, left, kind, rich, bits, softcap, settled, between, seed):
    form = AttentionForm(0.5, softcap)
    compare(shape, calls, left, policy_of(kind, rich, seed), form, settled, between, seed, bits=bits)


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=shapes,
    calls=calls,
    left=LEFT,
    rule=st.sampled_from(sorted(RULES)),
    across=st.sampled_from(["head", "layer", "model"]),
    bits=st.sampled_from(BITS),
    between=st.sampled_from([None, "hide", "select"]),
    seed=st.integers(0, 999),
)
def test_rules_keep_the_same_packed_tokens(shape, calls, left, rule, across, bits, between, seed):
    compare(shape, calls, left, RULES[rule](across), AttentionForm(0.5), "all", between, seed, bits=bits)


def packed_rows(layers: Layers) -> list[Any]:
    """What is packed of each row of each layer."""
    found = []
    for layer in layers.layers:
        for row, state in enumerate(layer.engine.states()):
            assert (state.packed is not None) == bool(state.updated), f"row {row} is not packed"
            found.append(state.packed)
    return found


def same_codes(found: Layers, expected: Layers) -> None:
    for one, other in zip(packed_rows(found), packed_rows(expected), strict=True):
        if other is None:
            continue
        assert (one.bits, one.lengths, one.sinks) == (other.bits, other.lengths, other.sinks)
        assert torch.equal(one.frame, other.frame)
        for name in ("keys", "values", "positions"):
            for key in {name, f"{name} bounds", f"sink {name}"} & set(other.columns):
                assert torch.equal(one.columns[key], other.columns[key]), key


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("engine", ["padded", "ragged"])
def test_codes_are_those_of_loops_and_are_made_once(engine: str, bits: int) -> None:
    """In rows that begin together, part, and are decided on at other times."""
    padded = engine == "padded"
    policy = policy_of("kept", True, 3)
    found, expected = (Layers(policy, name, AttentionForm(0.5), 1, bits=bits) for name in (engine, "loops"))
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :7] = False
    for number, tokens in enumerate((20, 9, 1, 16, 33, 1, 20) if padded else (20, 9)):
        tensors = random_tokens(2, 2, 2, tokens, 12, 1, generator)
        for each in (found, expected):
            each.feed(tensors, None if number else mask)
        same_codes(found, expected)
        before = packed_rows(found)
        if padded:
            for each in (found, expected):
                each.settle([1])
            same_codes(found, expected)
            assert packed_rows(found)[0] is None or torch.equal(
                packed_rows(found)[0].columns["keys"], before[0].columns["keys"]
            )


@pytest.mark.parametrize("engine", ["loops", "padded"])
def test_when_all_that_is_packed_is_hidden_its_codes_go_to_no_other_token(engine: str) -> None:
    """Tokens that come next would else have them, as many as there were."""
    policy = policy_of("kept", False, 3)
    layers, fresh = (Layers(policy, engine, AttentionForm(0.5), 1, bits=8) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    layers.feed(random_tokens(1, 2, 2, 16, 8, 1, generator))
    first, then = (random_tokens(1, 2, 2, tokens, 8, 1, generator) for tokens in (5, 16))
    layers.feed(first)
    layers.hide([torch.arange(16)])
    for each in (layers, fresh):
        if each is fresh:
            each.feed(first)
        each.feed(then)
    for one, other in zip(layers.held(), fresh.held(), strict=True):
        assert one["positions"].tolist() == other["positions"].tolist()
        torch.testing.assert_close(one["keys"], other["keys"], atol=0.05, rtol=0)


@pytest.mark.parametrize("engine", ["padded", "ragged"])
def test_between_updates_little_is_held(engine: str) -> None:
    """As much as by loops, but for free slots and padding of what is not packed."""
    policy = policy_of("kept", True, 3)
    found, exact, expected = (
        Layers(policy, name, AttentionForm(0.5), 1, bits=bits)
        for name, bits in ((engine, 4), (engine, None), ("loops", 4))
    )
    generator = torch.Generator().manual_seed(0)
    for tokens in (32, 3):
        tensors = random_tokens(2, 2, 1, tokens, 64, 1, generator)
        for each in (found, exact, expected):
            each.feed(tensors)
    own: Any = found.layers[0].engine
    assert isinstance(own.store, SplitBatch) and own.unpacked is None
    (bits, full, loops) = ([row.store for row in each.layers[0].rows] for each in (found, exact, expected))
    for row in range(2):
        room = 16 if engine == "ragged" else 4  # tokens; that of a whole block, where launches are to be the same
        assert bits[row].nbytes("keys", "values") <= loops[row].nbytes("keys", "values") + room * 2 * 2 * 64 * 4
        assert engine == "ragged" or bits[row].nbytes() < 0.5 * full[row].nbytes()
        assert bits[row].least_bytes() == loops[row].least_bytes()
    held = own.store.held
    codes = held.tokens * 2 * (64 // 2 + 2 * 2)  # four bits a channel, and two bounds for 64 of them
    assert held.nbytes("keys", "values") == codes + sum(held.sinks) * 2 * 64 * 4 + held.frame.nbytes
    tensors = [*held.columns.values(), held.frame, *getattr(own.store.since, "columns", {}).values()]
    if engine == "padded":
        assert sum(each.untyped_storage().nbytes() for each in tensors) == sum(row.nbytes() for row in bits)


@torch.inference_mode()
def cache_of(model: PreTrainedModel, ids: torch.Tensor, engine: str, **options: Any) -> MemoryCache:
    policy = NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True)), kept=0.4)
    cache = MemoryCache(model, policy, engine=engine, bits=4)
    model(ids, past_key_values=cache, **options)
    return cache


def positions(cache: MemoryCache) -> Any:
    return [[[own.tolist() for own in row] for row in layer] for layer in cache.positions()]


@torch.inference_mode()
def test_a_model_says_the_same_with_packed_tokens(wild: PreTrainedModel) -> None:
    """A batch that is padded on the left, over several updates; what a layer makes of it goes into the next ones."""
    ids = torch.randint(3, 200, (2, 42), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    said = []
    for name in ("padded", "loops"):
        policy = NAMMPolicy(policy_of("kept", True, 0).memory, kept=0.4)
        cache = MemoryCache(wild, policy, engine=name, bits=8)
        output = wild.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=40, do_sample=False)
        cache.settle()
        cache.check()
        said.append((output.tolist(), positions(cache), cache.stats().seen))
    assert said[0] == said[1]


@torch.inference_mode()
@pytest.mark.parametrize("engine", ["padded", "ragged"])
def test_forks_share_what_is_packed_and_leave_it_as_it_is(wild: PreTrainedModel, ids: Any, engine: str) -> None:
    cache = cache_of(wild, ids[:, :20], engine)
    held = [layer.engine.store.held for layer in cache.layers]  # type: ignore[union-attr]
    before = [{name: column.clone() for name, column in own.columns.items()} for own in held]
    told = positions(cache), cache.stats()
    fork = cache.fork()
    assert fork.bits == 4 and fork.stats().shared_bytes > 0
    assert [layer.engine.store.held for layer in fork.layers] == held  # type: ignore[union-attr]
    one = wild(ids[:, 20:23], past_key_values=fork).logits
    wild(ids[:, 23:32], past_key_values=fork)  # decides
    fork.check()
    assert fork.stats().shared_bytes == 0
    for own, was in zip(held, before, strict=True):
        assert all(torch.equal(own.columns[name], was[name]) for name in was)
    assert positions(cache) == told[0] and cache.stats().kv_bytes == told[1].kv_bytes
    assert torch.equal(wild(ids[:, 20:23], past_key_values=cache).logits, one)


@torch.inference_mode()
@pytest.mark.parametrize(("engine", "other"), [("padded", "loops"), ("loops", "padded"), ("padded", "ragged")])
def test_a_file_goes_on_in_another_engine(wild: PreTrainedModel, tmp_path: Path, engine: str, other: str) -> None:
    """In the middle of a block, with a row that has packed nothing yet."""
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    cache = cache_of(wild, ids, engine, attention_mask=mask)
    cache.save(tmp_path)
    first = MemoryCache.load(wild, tmp_path)
    second = MemoryCache.load(wild, tmp_path, engine=other)
    assert (first.engine, second.engine) == (engine, other)
    more = torch.cat([mask, torch.ones(2, 9, dtype=torch.long)], dim=1)
    said = [wild(ids[:, :9], past_key_values=each, attention_mask=more).logits for each in (cache, first, second)]
    for logits in said[1:]:
        torch.testing.assert_close(logits, said[0], atol=1e-4, rtol=1e-4)
    for each in (cache, first, second):
        each.check()
        assert positions(each) == positions(cache) and each.bits == 4


def test_rehearsals_note_the_same_with_packed_tokens(wild: PreTrainedModel) -> None:
    ids = torch.randint(3, 200, (2, 50), generator=torch.Generator().manual_seed(1))
    memory, held = policy_of("kept", True, 0).memory, []
    for engine in ("padded", "loops"):
        cache = MemoryCache(wild, NAMMPolicy(memory, kept=0.3, rehearsed=True), engine=engine, bits=8)
        cache.rehearse(ids, torch.tensor([5, 6]))
        cache.check()
        held.append(positions(cache))
    assert held[0] == held[1]


def test_what_is_never_decided_on_is_never_packed() -> None:
    found, expected = (Layers(Full(), "loops", AttentionForm(0.5), 1, bits=bits) for bits in (4, None))
    generator = torch.Generator().manual_seed(0)
    for tokens in (16, 1):
        tensors = random_tokens(1, 2, 1, tokens, 8, 1, generator)
        assert torch.equal(found.feed(tensors)[0], expected.feed(tensors)[0])
    same(found, expected)


def steps(engine: str, rows: int, heads: int) -> tuple[int, int]:
    """Operations of a block that ends with a decision, and of a token."""
    layers = Layers(policy_of("kept", False, 0), engine, AttentionForm(0.25), 1, bits=4)
    generator = torch.Generator().manual_seed(0)
    found = []
    for tokens in (16, 16, 16, 1, 1):
        tensors = random_tokens(rows, heads, 2, tokens, 16, 1, generator)
        with Operations() as counter:
            layers.feed(tensors)
        found.append(counter.computed)
    return found[2], found[-1]


def test_operations_do_not_grow_with_rows_and_heads() -> None:
    for rows, heads in ((1, 2), (3, 4)):
        block, step = steps("padded", rows, heads)
        assert step <= 50 and block <= 310  # unpacked and packed once for the layer, and once for all layers
