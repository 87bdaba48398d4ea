"""Kernels of the engine `ragged` by themselves: what they give beside loops, and how near they come to the memory's
speed; for `benchmarks/gpu.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from layers import Layers, random_tokens
from torch import Tensor

from namm import NAMM
from namm.cache.arithmetic import AttentionForm
from namm.cache.engine import RowState
from namm.policies import NAMMPolicy, Policy
from namm.policies.names import make_policy

Row = dict[str, Any]
RULES = ("h2o", "snapkv", "tova", "l2", "streaming")
ROUND = 256 * 2**20  # bytes of keys and values that are gone through before any is read again, past any cache of a GPU


@dataclass(frozen=True)
class Shape:
    """Attention of one layer.

    Attributes:
        name: of the model that has it.
        heads: KV heads.
        group: query heads of each.
        width: of keys and values.
    """

    name: str
    heads: int
    group: int
    width: int


@dataclass(frozen=True)
class Case:
    """What both engines are fed.

    Attributes:
        rows: of the batch; the first is padded by a third on the left where there are more.
        calls: tokens of each call.
        softcap: of the logits, if any.
        sinks: whether every query head has one.
        bits: of keys and values that are decided on; None: as they are.
    """

    shape: Shape
    rows: int
    calls: tuple[int, ...]
    softcap: float | None = None
    sinks: bool = False
    bits: int | None = None

    def form(self, dtype: torch.dtype, device: torch.device) -> AttentionForm:
        sinks = None
        if self.sinks:
            heads = self.shape.heads * self.shape.group
            sinks = torch.randn(heads, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        return AttentionForm(self.shape.width**-0.5, self.softcap, sinks)


def cases(shapes: Sequence[Shape], interval: int, quick: bool) -> list[Case]:
    """A prompt of several blocks, a part of one, and steps of decoding."""
    calls = (interval, interval // 2, 1) if quick else (2 * interval, interval + interval // 2, 1, 1, 1)
    plain = [Case(shape, 1, calls) for shape in shapes]
    return [*plain, Case(shapes[0], 2, calls, 30.0, True), Case(shapes[0], 2, calls, bits=4)]


def smaller(memory: NAMM, interval: int) -> NAMM:
    """A random memory of the same kind that decides more often."""
    torch.manual_seed(0)
    made = NAMM(replace(memory.config, update_interval=interval, reach=interval, hidden=8))
    made.load_flat_parameters(made.flat + 0.3 * torch.randn(made.flat.shape))
    return made


def policies(memory: NAMM) -> dict[str, Policy]:
    """The memory, and rules that see attention and that do not, each to keep a quarter.

    What the memory holds of a token is not rounded, so that differences are those of the kernels.
    """
    memory = replace(memory, config=replace(memory.config, state_dtype="float32"))
    return {name: make_policy(name, 0.25, memory) for name in ("namm", *RULES)}


def fed(case: Case, policy: Policy, engine: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Any]]:
    """Outputs of all calls side by side, float32, and the positions that every head holds after a last decision."""
    layers = Layers(policy, engine, case.form(dtype, device), count=1, bits=case.bits)
    generator = torch.Generator().manual_seed(0)
    shape, outputs = case.shape, []
    for number, tokens in enumerate(case.calls):
        (new,) = random_tokens(case.rows, shape.heads, shape.group, tokens, shape.width, 1, generator)
        mask = None
        if case.rows > 1 and number == 0:
            left = torch.tensor([tokens // 3] + [0] * (case.rows - 1))
            mask = (torch.arange(tokens) >= left[:, None]).to(device)
        # numbers that bfloat16 has, so that all see the same
        outputs += layers.feed([[tensor.bfloat16().to(device, dtype) for tensor in new]], mask)
    layers.settle(None)
    held = [set(head["positions"].tolist()) for head in layers.held()]
    return torch.cat(outputs, dim=1).float(), held


def flips(one: list[Any], other: list[Any]) -> int:
    """Tokens that one holds and the other does not."""
    return sum(len(a ^ b) for a, b in zip(one, other, strict=True))


def agreement(case: Case, policy: Policy, device: torch.device) -> Row:
    """Kernels beside loops: in float32, and both in bfloat16 beside loops in float32."""
    exact, held = fed(case, policy, "loops", torch.float32, device)
    found: Row = {"tokens_held": sum(map(len, held))}
    for engine, dtype in (("ragged", "float32"), ("ragged", "bfloat16"), ("loops", "bfloat16")):
        output, own = fed(case, policy, engine, getattr(torch, dtype), device)
        found[f"{engine}_{dtype}_error"] = float((output - exact).abs().max())
        found[f"{engine}_{dtype}_flips"] = flips(own, held)
    return found


def filled(shape: Shape, rows: int, tokens: int, policy: Policy, dtype: torch.dtype, device: torch.device) -> Any:
    """An engine of one layer that holds so many random tokens of every head, and as many queries as it looks at."""
    layers = Layers(policy, "ragged", AttentionForm(shape.width**-0.5), count=1)
    engine: Any = layers.layers[0].engine
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    place: Any = {"dtype": dtype, "device": device}
    interval = policy.update_interval or 0
    states = []
    for _ in range(rows):
        heads = [
            {"keys": torch.randn(tokens, shape.width, **place), "values": torch.randn(tokens, shape.width, **place)}
            | {"positions": positions}
            for _ in range(shape.heads)
        ]
        pending = torch.randn(shape.heads * shape.group, interval, shape.width, **place)
        states.append(RowState(heads, pending, None, None, tokens, tokens - interval, None, False))
    engine.restore(states)
    return engine


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call; on a GPU without what the host takes to launch it."""
    if device.type == "cuda":
        from triton.testing import do_bench_cudagraph

        return float(do_bench_cudagraph(function, rep=20, return_mode="median")) / 1000
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def copy_speed(device: torch.device, size: int) -> Row:
    """Bytes a second that a copy of so many bytes reads and writes: what the memory gives."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return {"bytes_per_second": 2 * size / timed(lambda: into.copy_(source), device)}


def decoding(shape: Shape, rows: int, tokens: int, memory: NAMM, dtype: torch.dtype, device: torch.device) -> Row:
    """Attention of one step of decoding, in the store of one layer after the other."""
    from namm.cache.ragged.attending import attend

    policy = NAMMPolicy(memory)
    size = rows * shape.heads * tokens * 2 * shape.width * dtype.itemsize
    count = max(1, -(-ROUND // size)) if device.type == "cuda" else 1
    engines = [filled(shape, rows, tokens, policy, dtype, device) for _ in range(count)]
    query = torch.randn(rows, shape.heads * shape.group, 1, shape.width, dtype=dtype, device=device)
    form = AttentionForm(shape.width**-0.5)

    def once() -> None:
        for engine in engines:
            attend(engine.store, query, [1] * rows, form, engine.ring)

    seconds = timed(once, device) / count
    return {"seconds": seconds, "bytes": size, "bytes_per_second": size / seconds}


def block(shape: Shape, rows: int, tokens: int, memory: NAMM, dtype: torch.dtype, device: torch.device) -> Row:
    """A block's attention, and what is made of it: its spectrogram, and birth rows where a memory has them."""
    from namm.cache.ragged.attending import attend
    from namm.cache.ragged.observing import observe

    interval, form = memory.config.update_interval, AttentionForm(shape.width**-0.5)
    query = torch.randn(rows, shape.heads * shape.group, interval, shape.width, dtype=dtype, device=device)
    only = NAMMPolicy(NAMM(replace(memory.config, birth=False)))
    found: Row = {}
    for name, policy in (("spectrogram", only), ("observed", NAMMPolicy(memory))):
        engine = filled(shape, rows, tokens, policy, dtype, device)
        attends = partial(attend, engine.store, query, [interval] * rows, form, engine.ring)
        attends()  # of what is in the ring, log normalisers
        found["attention_seconds"] = timed(attends, device)
        watches = partial(observe, policy, engine.store, engine.ring, list(range(rows)), interval, form)
        found[f"{name}_seconds"] = timed(watches, device)
    return found
