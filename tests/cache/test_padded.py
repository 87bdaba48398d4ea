"""The padded engine does what the loops do, in any batch."""

from __future__ import annotations

import torch
from engines import Layers, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from namm import NAMM, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.policies import NAMMPolicy

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


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
calls = st.lists(st.sampled_from([1, 1, 3, 16, 20, 40]), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None, derandomize=True)
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
    rows, heads, group = shape
    generator = torch.Generator().manual_seed(seed)
    sinks = torch.randn(heads * group, generator=generator) if with_sinks else None
    policy = policy_of(kind, rich, seed)
    engines = [Layers(policy, engine, AttentionForm(0.5, softcap, sinks)) for engine in ("padded", "loops")]
    mask = None
    if any(left[:rows]):
        calls = [31, *calls]
        mask = torch.arange(31) >= torch.tensor(left[:rows])[:, None]
    for number, tokens in enumerate(calls):
        tensors = random_tokens(rows, heads, group, tokens, 8, 2, generator)
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
