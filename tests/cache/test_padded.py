"""The padded engine does what the loops do, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from layers import Layers, random_tokens
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.cache.loops import Loops
from namm.policies import H2O, L2, TOVA, NAMMPolicy, Policy, SnapKV, Streaming
from namm.policies.keydiff import KeyDiff

PLAIN = NAMMConfig(hidden=8, update_interval=16, window=8, hop=4)
RICH = NAMMConfig(
    hidden=8,
    heads=2,
    update_interval=16,
    window=8,
    hop=4,
    ema=(0.9, 0.99),
    compression="log",
    bands=((0, 0), (1, 4)),
    birth=True,
    key_value=True,
    standardised=True,
    reach=6,
    normalised=True,
    influence=(0.5, -1.0),
)


def policy_of(kind: str, rich: bool, seed: int) -> NAMMPolicy:
    memory = NAMM(RICH if rich else PLAIN)
    memory.load_flat_parameters(memory.flat + 0.3 * torch.randn(memory.flat.shape, generator=torch.manual_seed(seed)))
    return NAMMPolicy(
        memory,
        **{
            "offset": {"offset": 0.1},
            "kept": {"kept": 0.4},
            "cap": {"offset": 0.5, "cap": 9},
            "budget": {"budget": 11, "cap": 0.5},
        }[kind],
    )


def same(found: Layers, expected: Layers) -> None:
    """The same tokens in every head, and what is known of them."""
    for one, other in zip(found.held(), expected.held(), strict=True):
        assert one["positions"].tolist() == other["positions"].tolist()
        for name in other.keys() & one.keys():
            torch.testing.assert_close(one[name].float(), other[name].float(), atol=1e-4, rtol=2e-2)


def compare(
    shape: tuple[int, int, int],
    calls: list[int],
    left: list[int],
    policy: Policy,
    form: AttentionForm,
    settled: object,
    between: str | None,
    seed: int,
    names: tuple[str, str] = ("padded", "loops"),
    layers: int = 2,
    bits: int | None = None,
) -> None:
    """Feed both engines the same, in a batch that may be padded on the left, and look at them after every call."""
    rows, heads, group = shape
    generator = torch.Generator().manual_seed(seed)
    engines = [Layers(policy, engine, form, layers, bits=bits) for engine in names]
    mask = None
    if any(left[:rows]):
        calls = [31, *calls]
        mask = torch.arange(31) >= torch.tensor(left[:rows])[:, None]
    for number, tokens in enumerate(calls):
        tensors = random_tokens(rows, heads, group, tokens, 8, layers, generator)
        outputs, expected = (each.feed(tensors, mask if number == 0 else None) for each in engines)
        for own, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        same(*engines)
        if number == 1 and between == "hide":
            seen = [row.seen for row in engines[0].layers[0].rows]
            hidden = [torch.randperm(n, generator=generator)[: n // 3].sort().values for n in seen]
            for each in engines:
                each.hide(hidden)
            same(*engines)
        if number == 1 and between == "select":
            order = torch.randint(rows, (rows,), generator=generator).tolist()
            for each in engines:
                each.select(order)
            same(*engines)
    if settled is not None:
        for each in engines:
            each.settle(None if settled == "all" else settled)
        same(*engines)


def say_the_same(model: Any, engines: tuple[str, str], ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> None:
    """Generated under two engines, and what they hold then."""
    said = []
    for engine in engines:
        cache = MemoryCache(model, policy_of("kept", True, 0), engine=engine)
        output = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        cache.check()
        cache.settle()
        positions = [[h.tolist() for h in row] for layer in cache.positions() for row in layer]
        said.append((output.tolist(), positions, cache.stats().seen))
    assert said[0] == said[1]


def note_the_same(model: Any, engines: tuple[str, str], ids: torch.Tensor) -> None:
    """What two engines hold of a text that was rehearsed."""
    held = []
    for engine in engines:
        policy = policy_of("kept", True, 0)
        cache = MemoryCache(model, NAMMPolicy(policy.memory, kept=0.3, rehearsed=True), engine=engine)
        cache.rehearse(ids, torch.tensor([5, 6]))
        cache.check()
        held.append([[h.tolist() for h in r] for layer in cache.positions() for r in layer])
    assert held[0] == held[1]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
calls = st.lists(st.sampled_from([1, 1, 3, 16, 20, 40]), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=shapes,
    calls=calls,
    left=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    kind=st.sampled_from(["offset", "kept", "cap", "budget"]),
    rich=st.booleans(),
    softcap=st.sampled_from([None, 3.0]),
    with_sinks=st.booleans(),
    settled=st.sampled_from([None, [0], "all"]),
    between=st.sampled_from([None, "hide", "select"]),
    seed=st.integers(0, 999),
)
def test_padded_does_what_loops_do(shape, calls, left, kind, rich, softcap, with_sinks, settled, between, seed):
    sinks = torch.randn(shape[1] * shape[2], generator=torch.Generator().manual_seed(seed)) if with_sinks else None
    form = AttentionForm(0.5, softcap, sinks)
    compare(shape, calls, left, policy_of(kind, rich, seed), form, settled, between, seed)


RULES = {
    "h2o": lambda across: H2O(0.3, 16, across=across),
    "snapkv": lambda across: SnapKV(0.5, 16, 5, 3, across=across),
    "tova": lambda across: TOVA(9, 16, across=across),
    "l2": lambda across: L2(0.4, 16, 1, across=across),
    "streaming": lambda across: Streaming(12, 16, across=across),
}


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=shapes,
    calls=calls,
    left=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    rule=st.sampled_from(sorted(RULES)),
    across=st.sampled_from(["head", "layer", "model"]),
    settled=st.sampled_from([None, [0], "all"]),
    between=st.sampled_from([None, "hide", "select"]),
    seed=st.integers(0, 999),
)
def test_rules_keep_the_same_tokens(shape, calls, left, rule, across, settled, between, seed):
    compare(shape, calls, left, RULES[rule](across), AttentionForm(0.5), settled, between, seed)


def test_a_policy_that_decides_head_by_head_gets_loops_and_is_told(tiny: PreTrainedModel) -> None:
    class Own(H2O):
        pass

    class Memory(NAMMPolicy):
        pass

    for policy in (Own(0.5), Memory(NAMM()), KeyDiff(0.5)):
        with pytest.warns(UserWarning, match="decides head by head, so the engine is 'loops'") as told:
            cache = MemoryCache(tiny, policy, engine="padded")
        assert len(told) == 1 and isinstance(cache.layers[0].engine, Loops)
    with pytest.raises(ValueError, match="engine must be one of loops, padded, ragged, got 'paged'"):
        MemoryCache(tiny, NAMM(), engine="paged")


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_a_model_says_the_same(wild: PreTrainedModel, options: dict[str, Any]) -> None:
    """A padded batch, beams, and a further turn on the same cache."""
    ids = torch.randint(3, 200, (2, 70), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    say_the_same(wild, ("padded", "loops"), ids, mask, max_new_tokens=40, **options)


@torch.no_grad()
def test_a_rehearsal_notes_the_same(wild: PreTrainedModel) -> None:
    ids = torch.randint(3, 200, (2, 50), generator=torch.Generator().manual_seed(1))
    note_the_same(wild, ("padded", "loops"), ids)


def test_nan_and_infinity_are_refused_with_their_place() -> None:
    layers = Layers(policy_of("kept", False, 0), "padded", AttentionForm(1.0))
    tensors = random_tokens(2, 2, 1, 16, 8, 2, torch.Generator().manual_seed(0))
    tensors[1][2][1, 1, 3] = torch.inf
    with pytest.raises(ValueError, match=r"layer 1, batch row 1, KV head 1: .* in the 16 tokens before token 16"):
        layers.feed(tensors)
