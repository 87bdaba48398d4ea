"""Kernels and packed tokens; Triton interprets them here, slowly, so all is tiny."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from launches import Launches
from layers import Layers, random_tokens
from tape import Tape
from test_graphs import held, ids_of, model_of, steps
from test_padded import RULES, compare, policy_of, same
from test_ragged import compiled, sinks_of

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm, attend, groups
from namm.cache.codes import BITS
from namm.cache.graphs import graphed
from namm.cache.ragged.split import SplitRagged
from namm.policies import NAMMPolicy

pytest.importorskip("triton", reason="the extra 'ragged' is for Linux")

MEMORY = NAMM(NAMMConfig(hidden=4, update_interval=8, window=4, hop=2))


@pytest.mark.parametrize(
    ("shape", "calls", "left", "kind", "form", "settled", "between"),
    [
        ((1, 2, 2), [16, 17], [0], "kept", AttentionForm(0.5), "all", None),
        ((2, 1, 2), [16, 3], [7, 0], "budget", AttentionForm(0.5, 3.0), [0], None),
        ((2, 1, 1), [20, 16], [0, 0], "kept", AttentionForm(0.5), "all", "hide"),
        ((2, 1, 1), [16, 3], [0, 9], "kept", AttentionForm(0.5), None, "select"),
    ],
    ids=str,
)
def test_ragged_packs_as_loops_do(shape, calls, left, kind, form, settled, between) -> None:
    policy = policy_of(kind, True, 5)
    compare(shape, calls, left, policy, form, settled, between, 11, ("ragged", "loops"), 1, bits=4)


def exactly(store: SplitRagged, query: torch.Tensor, form: AttentionForm) -> torch.Tensor:
    """Attention in float32 to what codes and newer tokens say, of one segment after the other."""
    sinks = {name: own.float() for name, own in store.held.columns.items() if name.startswith("sink ")}
    held = replace(store.held, dtype=torch.float32, columns={**store.held.columns, **sinks})
    found = torch.zeros(query.shape)
    for row in range(len(query)):
        for head, own in enumerate(groups(query[row], store.heads)):
            older, new = held.head(row * store.heads + head), store.since.head(row, head)
            keys, values = (torch.cat([older[name], new[name].float()]) for name in ("keys", "values"))
            output = attend(query[row, own].float(), keys, values, len(keys), form.of_group(own))
            assert output is not None
            found[row, own] = output
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("width", "dtype", "form"),
    [
        (12, torch.float32, AttentionForm(0.5, 3.0, sinks_of(4))),
        (16, torch.float32, AttentionForm(0.7)),
        (80, torch.bfloat16, AttentionForm(0.3)),  # two groups of channels
    ],
    ids=str,
)
def test_codes_are_attended_to_as_if_they_were_unpacked(width, dtype, form, bits, monkeypatch) -> None:
    """In one chunk or several, with sinks in the first, by rows of which one takes fewer tokens."""
    from namm.cache.ragged import attending

    layers = Layers(policy_of("budget", False, 1), "ragged", form, 1, bits=bits)
    generator = torch.Generator().manual_seed(0)
    tensors = random_tokens(2, 2, 2, 21, width, 1, generator)
    for one in (0, 3):  # a channel that is large, and off the middle
        tensors[0][1][..., one] = tensors[0][1][..., one] * 5 + 3
    layers.feed([[own.to(dtype) for own in each] for each in tensors])
    store: Any = layers.layers[0].engine.store  # type: ignore[attr-defined]
    assert min(store.held.lengths) == 8 and all(store.held.sinks)
    query = torch.randn(2, 4, 3, width, generator=generator).to(dtype)
    new = [3, 2]
    monkeypatch.setattr(attending, "CHUNK", 4 if bits == 4 else 256)  # two chunks, or one
    found = attending.attend(store.since, query, new, form, None, store.held)
    expected = exactly(store, query, form)
    expected[1, :, 0] = 0
    assert float(expected.std()) > 0.1
    most = 1e-5 if dtype == torch.float32 else 0.008
    assert float((found - expected).norm()) <= most * float(expected.norm())


@pytest.mark.parametrize("engine", ["ragged", "padded"])
def test_many_queries_attend_to_what_is_unpacked(engine: str) -> None:
    """Those of a piece of a prompt that ends no block, here outside of the mode in which its first part was read."""
    policy = RULES["h2o"]("head")
    found, expected = (Layers(policy, name, AttentionForm(0.5), 1, bits=4) for name in (engine, "loops"))
    generator = torch.Generator().manual_seed(0)
    for number, tokens in enumerate((20, 9, 4)):
        tensors = random_tokens(2, 1, 8, tokens, 8, 1, generator)
        for each in (found, expected):
            with torch.inference_mode(number == 0):
                each.feed([[own.clone() for own in tensors[0]]])
    same(found, expected)
    more = random_tokens(2, 1, 8, 9, 8, 1, generator)
    (output,), (wanted,) = found.feed(more), expected.feed(more)
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "heads"), [(1, 1), (2, 2)])
def test_a_step_takes_one_launch_more_and_the_same_every_time(rows: int, heads: int) -> None:
    """And a block as many operations for any number of rows and heads."""
    layers = Layers(policy_of("kept", False, 0), "ragged", AttentionForm(0.25), 1, bits=4)
    generator = torch.Generator().manual_seed(0)
    layers.feed(random_tokens(rows, heads, 2, 16, 8, 1, generator))
    with Launches() as counter:
        layers.feed(random_tokens(rows, heads, 2, 16, 8, 1, generator))
    assert counter.total <= 330 and len(counter.kernels) <= 16, counter
    (given,) = random_tokens(rows, heads, 2, 1, 8, 1, generator)
    layers.feed([given])  # makes room for more
    told = []
    for _ in range(3):
        with Launches() as counter:
            layers.feed([given])
        assert [name for name, *_ in counter.kernels] == ["append", "attend", "attend_packed", "combine"]
        assert counter.total == 4 and counter.waits == 0, counter
        told.append(counter.told(layers.layers[0].engine, given))
    assert len({json.dumps(step) for step in told}) == 1


def test_steps_of_decoding_are_captured_with_packed_tokens() -> None:
    """Over an update, at which what is packed lies elsewhere."""
    model, ids = model_of(1), ids_of(1, 20)
    runs = []
    for graph in (False, True):
        cache = MemoryCache(model, NAMMPolicy(MEMORY, kept=0.5), engine="ragged", bits=8)
        if graph:
            Tape.made.clear()
            with graphed(cache, Tape):
                runs.append(steps(model, cache, ids))
        else:
            runs.append(steps(model, cache, ids))
    torch.testing.assert_close(runs[1][0], runs[0][0], atol=1e-5, rtol=1e-5)
    assert runs[0][1] == runs[1][1] and held(cache) == runs[1][1]
    assert [tape.replays for tape in Tape.made] == [4, 3]
    Tape.made.clear()


def test_many_queries_a_head_are_not_captured() -> None:
    """They attend to what is unpacked, in other places at every step."""
    layers = Layers(policy_of("kept", False, 0), "ragged", AttentionForm(0.25), 1, bits=4)
    engine: Any = layers.layers[0].engine
    layers.feed(random_tokens(1, 1, 65, 1, 8, 1, torch.Generator().manual_seed(0)))
    assert engine.free() == 0


def test_the_kernel_compiles_for_an_h100_without_spills() -> None:
    for found in compiled("bfloat16 4", "bfloat16 softcap sinks 8").values():
        assert found["attend_packed split"]["spilled"] == 0
