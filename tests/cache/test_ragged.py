"""The engine of kernels does what the loops do; on a CPU Triton interprets it, slowly, so all is tiny here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from launches import Launches
from layers import Layers, random_tokens
from test_padded import RULES, compare, note_the_same, policy_of, same, say_the_same
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.cache.padded import Padded
from namm.memory.config import UNIVERSAL
from namm.policies import H2O, NAMMPolicy
from namm.policies.base import BudgetPolicy

pytest.importorskip("triton", reason="the extra 'ragged' is for Linux")

ROOT = Path(__file__).parents[1]
ENGINES = ("ragged", "loops")


def sinks_of(heads: int) -> torch.Tensor:
    return torch.randn(heads, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("shape", "calls", "left", "kind", "rich", "form", "settled", "between"),
    [
        ((1, 2, 2), [16, 17], [0], "kept", True, AttentionForm(0.5), "all", None),
        ((2, 1, 3), [16], [7, 0], "budget", True, AttentionForm(0.5, 3.0, sinks_of(3)), [0], None),
        ((1, 2, 1), [20, 1], [0], "offset", False, AttentionForm(0.5, None, sinks_of(2)), None, None),
        ((2, 1, 2), [16, 3], [0, 0], "cap", False, AttentionForm(0.5, 3.0), "all", "hide"),
        ((1, 1, 2), [20, 16], [0], "kept", True, AttentionForm(0.5), "all", "hide"),
        ((2, 1, 1), [16, 3], [0, 9], "kept", True, AttentionForm(0.5), None, "select"),
    ],
    ids=str,
)
def test_ragged_does_what_loops_do(shape, calls, left, kind, rich, form, settled, between):
    compare(shape, calls, left, policy_of(kind, rich, 5), form, settled, between, 11, ENGINES)


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    calls=st.lists(st.sampled_from([1, 3, 16, 20]), min_size=1, max_size=2),
    left=st.lists(st.integers(0, 30), min_size=2, max_size=2),
    kind=st.sampled_from(["offset", "kept", "cap", "budget"]),
    rich=st.booleans(),
    softcap=st.sampled_from([None, 3.0]),
    with_sinks=st.booleans(),
    settled=st.sampled_from([None, [0], "all"]),
    between=st.sampled_from([None, "hide", "select"]),
    seed=st.integers(0, 999),
)
def test_ragged_does_what_loops_do_anywhere(
    shape, calls, left, kind, rich, softcap, with_sinks, settled, between, seed
):
    form = AttentionForm(0.5, softcap, sinks_of(shape[1] * shape[2]) if with_sinks else None)
    compare(shape, calls, left, policy_of(kind, rich, seed), form, settled, between, seed, ENGINES, layers=1)


@pytest.mark.parametrize(
    ("rule", "across"),
    [("h2o", "layer"), ("tova", "head"), ("snapkv", "model"), ("l2", "layer"), ("streaming", "head")],
)
def test_rules_keep_the_same_tokens_in_kernels(rule: str, across: str) -> None:
    compare((1, 2, 2), [16, 4], [0], RULES[rule](across), AttentionForm(0.5), "all", None, 1, ENGINES)


def test_bfloat16_flips_no_more_decisions_than_loops() -> None:
    """All judged by loops in float32."""
    policy = policy_of("kept", True, 2)
    runs = {
        (engine, dtype): Layers(policy, engine, AttentionForm(0.25), count=1)
        for engine, dtype in (("loops", torch.float32), ("loops", torch.bfloat16), ("ragged", torch.bfloat16))
    }
    flipped = {}
    for (engine, dtype), layers in runs.items():
        generator = torch.Generator().manual_seed(0)
        for tokens in (16, 16, 16):
            tensors = [
                [t.bfloat16().to(dtype) for t in own] for own in random_tokens(1, 2, 2, tokens, 16, 1, generator)
            ]
            layers.feed(tensors)
        flipped[engine, dtype] = [set(head["positions"].tolist()) for head in layers.held()]
    exact = flipped.pop(("loops", torch.float32))
    loops, ragged = (sum(len(a ^ b) for a, b in zip(found, exact, strict=True)) for found in flipped.values())
    assert ragged <= loops


@pytest.mark.parametrize("rows", [1, 4])
def test_few_launches_a_block_and_a_step(rows: int) -> None:
    """A block that ends with a decision of all layers, in the configuration that memories for every model have."""
    config = NAMMConfig(**{**vars(UNIVERSAL), "update_interval": 16, "reach": 16, "hidden": 8})
    layers = Layers(NAMMPolicy(NAMM(config), kept=0.25), "ragged", AttentionForm(0.25), count=1)
    generator = torch.Generator().manual_seed(0)

    def feed(tokens: int) -> Launches:
        tensors = [[t.bfloat16() for t in own] for own in random_tokens(rows, 1, 2, tokens, 16, 1, generator)]
        with Launches() as counter:
            layers.feed(tensors)
        return counter

    feed(16)
    block = feed(16)
    assert block.total <= 15 and block.waits <= 1, block
    feed(1)
    step = feed(1)
    assert step.total <= 4 and step.waits == 0, step


def test_steps_of_decoding_launch_the_same() -> None:
    """54 of them, with identical arguments, so that they can be one CUDA graph."""
    config = NAMMConfig(hidden=8, update_interval=64, window=8, hop=4)
    layers = Layers(NAMMPolicy(NAMM(config), kept=0.5), "ragged", AttentionForm(0.25), count=1)
    generator = torch.Generator().manual_seed(0)
    (prompt,) = random_tokens(1, 2, 2, 64, 8, 1, generator)
    layers.feed([prompt])
    (given_,) = random_tokens(1, 2, 2, 1, 8, 1, generator)
    steps = []
    for _ in range(54):
        for into, new in zip(given_, random_tokens(1, 2, 2, 1, 8, 1, generator)[0], strict=True):
            into.copy_(new)
        with Launches() as counter:
            layers.feed([given_])
        steps.append(counter.told(layers.layers[0].engine, given_))
    assert len({json.dumps(step) for step in steps}) == 1
    assert all(len(head["positions"]) > 54 for head in layers.held())


@torch.no_grad()
def test_a_model_says_the_same_by_kernels(wild: PreTrainedModel) -> None:
    """A padded batch with beams."""
    ids = torch.randint(3, 200, (2, 18), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    say_the_same(wild, ENGINES, ids, mask, max_new_tokens=2, num_beams=2)


@torch.no_grad()
def test_a_rehearsal_notes_the_same_by_kernels(wild: PreTrainedModel) -> None:
    ids = torch.randint(3, 200, (1, 20), generator=torch.Generator().manual_seed(1))
    note_the_same(wild, ENGINES, ids)


def test_settling_outside_of_inference_mode(wild: PreTrainedModel) -> None:
    cache = MemoryCache(wild, policy_of("kept", False, 0), engine="ragged")
    with torch.inference_mode():
        wild(torch.arange(3, 12)[None], past_key_values=cache)
    cache.settle()
    cache.check()
    assert cache.stats().held_bytes > 0


def test_kernels_refuse_nan_and_infinity_with_their_place() -> None:
    layers = Layers(policy_of("kept", False, 0), "ragged", AttentionForm(1.0))
    tensors = random_tokens(2, 2, 1, 16, 8, 2, torch.Generator().manual_seed(0))
    tensors[1][2][1, 1, 3] = torch.inf
    with pytest.raises(ValueError, match=r"layer 1, batch row 1, KV head 1: .* in the 16 tokens before token 16"):
        layers.feed(tensors)


def test_what_has_no_kernel_gets_padded_and_is_told(tiny: PreTrainedModel) -> None:
    class Own(BudgetPolicy):
        name, queries = "own", None

        def scores_grid(self, grid: Any) -> torch.Tensor:
            return grid.positions.float()

    windows = NAMMPolicy(NAMM(NAMMConfig(window=32, hop=8)))
    for policy, lacking in ((Own(0.5), "no kernel for what Own makes"), (windows, "no windows of more than two hops")):
        with pytest.warns(UserWarning, match=f"the engine is 'padded' and not 'ragged', which has {lacking}") as told:
            cache = MemoryCache(tiny, policy, engine="ragged")
        assert len(told) == 1 and isinstance(cache.layers[0].engine, Padded)
    assert not isinstance(MemoryCache(tiny, H2O(0.5), engine="ragged").layers[0].engine, Padded)


def test_without_triton_and_without_a_gpu_it_says_so(tiny: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as gone:
        gone.setitem(sys.modules, "triton", None)
        with pytest.raises(ImportError, match=r"^this needs triton: pip install 'namm\[ragged\]'$"):
            MemoryCache(tiny, NAMM(), engine="ragged")
    code = (
        "import sys, torch, namm\nassert 'triton' not in sys.modules, 'namm imports triton'\n"
        "from namm.cache.ragged.serves import check_device\n"
        "try: check_device(torch.device('cpu'))\nexcept ValueError as error: print(error)\n"
    )
    said = in_a_process("-c", code)
    assert "the engine 'ragged' needs a GPU; on a CPU it can only be checked" in said


def in_a_process(*arguments: str) -> str:
    """What Python prints without the interpreter of Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


WITH_PRODUCTS = {"attend", "spectrogram", "birth", "received", "normalise"}
BY_FORM = {"attend", "attend split", "spectrogram", "birth", "received", "normalise"}  # softcap and sinks change these


def compiled(*variants: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(in_a_process(str(ROOT / "compiled_kernels.py"), *variants))
    assert max(own["registers"] for kernels in found.values() for own in kernels.values()) <= 255
    return found


def test_kernels_compile_for_an_h100_without_spills() -> None:
    plain, bounded = compiled("bfloat16", "bfloat16 softcap sinks").values()
    assert {name for found in (plain, bounded) for name, own in found.items() if own["spilled"]} == set()
    assert {name for name, own in plain.items() if own["wgmma"]} >= WITH_PRODUCTS
    assert bounded.keys() == BY_FORM and {name for name, own in bounded.items() if own["wgmma"]} >= WITH_PRODUCTS


@pytest.mark.slow
def test_kernels_of_other_types_compile_for_an_h100() -> None:
    """In float32 products are exact, without matrix units, and spill: a GPU that has bfloat16 should be given that."""
    half, bounded, single, _ = compiled("float16", "float16 softcap sinks", "float32", "float32 softcap sinks").values()
    assert {name for found in (half, bounded) for name, own in found.items() if own["spilled"]} == set()
    assert {name for name, own in half.items() if own["wgmma"]} >= WITH_PRODUCTS
    assert {name for name, own in single.items() if own["spilled"]} <= BY_FORM


def test_what_loops_hold_kernels_go_on_with() -> None:
    """And the other way round, as a cache that was saved is loaded for another engine."""
    policy = policy_of("kept", True, 1)
    kinds = [("loops", "loops"), ("loops", "ragged"), ("ragged", "loops")]
    ends = []
    for before, after in kinds:
        generator = torch.Generator().manual_seed(0)
        first, second = (Layers(policy, engine, AttentionForm(0.5), count=1) for engine in (before, after))
        first.feed(random_tokens(1, 2, 1, 20, 8, 1, generator))
        engine: Any = second.layers[0].engine
        engine.restore(first.layers[0].engine.states())
        second.feed(random_tokens(1, 2, 1, 13, 8, 1, generator))
        ends.append(second)
    for other in ends[1:]:
        same(other, ends[0])


def test_layers_hold_the_same(tmp_path: Path) -> None:
    """A branch and a copy go on by themselves."""
    layers = Layers(policy_of("kept", False, 0), "ragged", AttentionForm(0.5), count=1)
    generator = torch.Generator().manual_seed(0)
    layers.feed(random_tokens(1, 1, 1, 16, 8, 1, generator))
    torch.save(layers.layers[0].engine, tmp_path / "engine")
    copy = Layers(policy_of("kept", False, 0), "ragged", AttentionForm(0.5), count=1)
    copy.layers[0].engine = torch.load(tmp_path / "engine", weights_only=False)
    more = random_tokens(1, 1, 1, 3, 8, 1, generator)
    assert torch.equal(layers.feed(more)[0], copy.feed(more)[0])
    same(layers, copy)
