"""Whole models on a GPU: prefill and decoding with a memory beside transformers' caches; for `benchmarks/gpu.py`."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from speed import held
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PretrainedConfig, StaticCache

import namm
from namm.planning import read_config
from namm.policies import NAMMPolicy

Row = dict[str, Any]
AT_ONCE = 2**17  # tokens of all rows that go through a model in one call
UNTIMED = 2  # steps of decoding before the clock runs
GRAPHED = ", graphed"
RANDOM = "random:"
TINY = LlamaConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=4096,
)


def load(name: str, device: torch.device) -> Any:
    """A model by its name; after ``random:`` that of a configuration, with random weights in bfloat16."""
    if not name.startswith(RANDOM):
        return namm.load_model(name, dtype=torch.bfloat16, device=device)[0]
    config = configuration(name)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def configuration(name: str) -> PretrainedConfig:
    """That of a random model, which may read texts of any length."""
    config: Any = TINY if name == f"{RANDOM}tiny" else read_config(name.removeprefix(RANDOM))
    config.max_position_embeddings = max(config.max_position_embeddings, 2**18)
    return config


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        cache: "full" (`DynamicCache`), "static, graphed" (`StaticCache`, a step of decoding as one CUDA graph), or an
            engine, and graphed.
        tokens: of the prompt, for each of `rows`.
        steps: of decoding that are timed.
    """

    cache: str
    tokens: int
    rows: int
    steps: int

    @property
    def size(self) -> int:
        """Tokens that a cache must have room for."""
        return self.tokens + self.steps + 3 * UNTIMED + 8


class Clock:
    """Seconds on a device: by events of CUDA, or by the host's clock where there are none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, function: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            function()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


@torch.no_grad()
def measure(model: Any, memory: namm.NAMM, kept: float, run: Run) -> Row:
    """Seconds of a prefill, of a step of decoding and of an update, and bytes held; ``fits: false`` where memory of the
    device is not enough."""
    device = model.device
    short = lacking_bytes(model, memory, kept, run)
    if short > 0:
        return {"fits": False, "lacking_bytes": short}
    try:
        return {"fits": True} | _measure(model, memory, kept, run, Clock(device))
    except torch.OutOfMemoryError:
        return {"fits": False}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def lacking_bytes(model: Any, memory: namm.NAMM, kept: float, run: Run) -> int:
    """How many bytes a cache needs beyond those that the device has free."""
    if model.device.type != "cuda":
        return 0
    text = model.config.get_text_config(decoder=True)
    heads = text.num_key_value_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    full = run.rows * run.size * text.num_hidden_layers * heads * 2 * width * model.dtype.itemsize
    needed = full * (1.0 if run.cache in ("full", "static, graphed") else kept)
    return int(needed) - torch.cuda.mem_get_info(model.device)[0]


@contextlib.contextmanager
def made(model: Any, memory: namm.NAMM, kept: float, name: str) -> Iterator[Any]:
    """A cache; its steps of decoding are graphs where it is called so and there is a GPU."""
    if name == "full":
        yield DynamicCache(config=model.config)
        return
    cache = namm.MemoryCache(model, NAMMPolicy(memory, kept=kept), engine=name.removesuffix(GRAPHED))
    graph = name.endswith(GRAPHED) and model.device.type == "cuda"
    with namm.graphed(cache) if graph else contextlib.nullcontext():
        yield cache


@torch.no_grad()
def same_by_graphs(model: Any, memory: namm.NAMM, kept: float, tokens: int, new: int) -> Row:
    """How many of so many tokens are the same whether steps are graphs or not."""
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    said = []
    for name in ("ragged", f"ragged{GRAPHED}"):
        with made(model, memory, kept, name) as cache:
            options = {"past_key_values": cache, "do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
            said.append(model.generate(ids.to(model.device), **options)[0, tokens:])
    return {"new_tokens": new, "same": int((said[0] == said[1]).sum())}


def _measure(model: Any, memory: namm.NAMM, kept: float, run: Run, clock: Clock) -> Row:
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (run.rows, run.tokens), generator=generator).to(device)
    if run.cache == "static, graphed":
        found = _static(model, run, ids, clock)
    else:
        with made(model, memory, kept, run.cache) as cache:

            def prefill() -> None:
                for piece in ids.split(max(1, AT_ONCE // run.rows), dim=1):
                    model(piece, past_key_values=cache, logits_to_keep=1)

            def step() -> None:
                model(ids[:, :1], past_key_values=cache)

            found = {"prefill_seconds": clock(prefill)} | held(cache)
            found["decode_seconds"] = _steps(step, run.steps, clock)
            if run.cache != "full":
                found["update_seconds"] = clock(cache.settle)
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _steps(step: Callable[[], object], count: int, clock: Clock) -> float:
    """Seconds of one of so many steps, after some more."""

    def all_of_them() -> None:
        for _ in range(count):
            step()

    for _ in range(UNTIMED):
        step()
    return clock(all_of_them) / count


def _static(model: Any, run: Run, ids: Tensor, clock: Clock) -> Row:
    """Decoding after as many tokens as a prompt would leave, which are random: what they are costs nothing."""
    cache = StaticCache(config=model.config, max_cache_len=run.size)
    one, position = ids[:, :1].clone(), torch.full_like(ids[:, :1], run.tokens)
    model(one, past_key_values=cache, position_ids=torch.zeros_like(position))
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(run.tokens)
    # made once, as `generate` makes it outside of what it compiles
    visible = torch.zeros(run.rows, 1, 1, run.size, dtype=torch.bool, device=ids.device)
    visible[..., : run.tokens + 1] = True

    def step() -> None:
        model(one, past_key_values=cache, position_ids=position, attention_mask=visible)

    kv = sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))
    seconds = _steps(captured(step, ids.device), run.steps, clock)
    return {"decode_seconds": seconds, "kept_fraction": 1.0, "held_bytes": kv, "kv_bytes": kv}


def captured(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A step as one CUDA graph; as it is where there are none."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(UNTIMED):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
