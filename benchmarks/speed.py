"""Prefill and decode time of a memory beside a full cache and a sliding one, every repetition on its own.

The memory reads the text in one call, and once more in pieces of 512 tokens, as the commands feed it.

    python benchmarks/speed.py                        # SmolLM2 at 1k, 4k and 8k tokens
    python benchmarks/speed.py --rehearse             # also of a memory to which the text is repeated
    python benchmarks/speed.py --model my/model --device cuda --engine ragged --lengths 4096 32768

Last it counts, on any device, what a block of 256 tokens and a step of decoding ask of one, a layer: operations of
PyTorch and kernels, each of which a GPU launches. Nothing is timed there, and the kernels of `ragged` need not be run.

The full cache is transformers' own: sdpa and DynamicCache. Every repetition runs all of them one after the other, so
that a ratio is of two times taken next to each other; the first only warms up. Look at medians and ranges: ratios move
with the processor, and with what else it does.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from launches import Launches, launching_module, without_running
from measuring import Measurements, Row, Setup, load, made_with, parser
from rich.progress import track
from transformers import DynamicCache

import namm
from namm.cache.engines import ENGINES
from namm.cache.layer import MemoryLayer
from namm.policies.names import make_policy
from namm.tasks import packaged_prose
from namm.tasks.answering import PIECE
from namm.tasks.encode import encode, to_repeat

PIECES = "namm, in pieces"
CACHES = ("full", "streaming", "namm", PIECES)
REHEARSED = "namm, rehearsed"


def new_cache(setup: Setup, kind: str, kept: float, engine: str = "loops") -> Any:
    if kind == "full":
        return DynamicCache(config=setup.model.config)
    name = "namm" if kind in (REHEARSED, PIECES) else kind
    policy = make_policy(name, kept, setup.memory, rehearse=kind == REHEARSED)
    return namm.MemoryCache(setup.model, policy, engine=engine)


def held(cache: Any) -> Row:
    """Tokens kept and bytes held, read from the tensors."""
    if isinstance(cache, namm.MemoryCache):
        stats = cache.stats()
        return {"kept_fraction": stats.kept_fraction, "held_bytes": stats.held_bytes, "kv_bytes": stats.kv_bytes}
    kv = sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return {"kept_fraction": 1.0, "held_bytes": kv, "kv_bytes": kv}


@torch.inference_mode()
def measure(setup: Setup, kind: str, kept: float, ids: torch.Tensor, new_tokens: int, engine: str) -> Row:
    def now() -> float:
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        return time.perf_counter()

    cache = new_cache(setup, kind, kept, engine)
    started = now()
    if kind == REHEARSED:
        cache.rehearse(ids, to_repeat(setup.tokenizer))
    else:
        for piece in ids.split(PIECE if kind == PIECES else ids.shape[1], dim=1):
            setup.model(piece, past_key_values=cache, logits_to_keep=1)
    prefilled = now()
    sizes = held(cache)
    decoding = now()
    for step in range(new_tokens):
        setup.model(ids[:, step : step + 1], past_key_values=cache)
    return {"prefill_seconds": prefilled - started, "decode_seconds": (now() - decoding) / new_tokens} | sizes


@torch.no_grad()
def count(setup: Setup, engine: str, kept: float, ids: torch.Tensor) -> Row:
    """Launches of the third block of a prompt and of a step of decoding after it: of the cache and attention with it,
    and of the whole model, a layer.

    Args:
        engine: or "full". ids: ``[rows, three blocks and two tokens]``.
    """
    within: list[int] = []
    attend = MemoryLayer.attend

    def counted(*arguments: Any) -> Any:
        with Launches() as counter:
            output = attend(*arguments)
        within.append(counter.total)
        return output

    found: Row = {}
    interval = setup.memory.config.update_interval
    with contextlib.ExitStack() as stack:
        if engine == "ragged":
            stack.enter_context(without_running())
        stack.enter_context(mock.patch.object(MemoryLayer, "attend", counted))
        cache = new_cache(setup, "full" if engine == "full" else "namm", kept, engine)
        for name, tokens in (("", interval), ("", interval), ("block", interval), ("", 1), ("step", 1)):
            piece, ids = ids[:, :tokens], ids[:, tokens:]
            within.clear()
            with Launches() as whole:
                setup.model(piece, past_key_values=cache, logits_to_keep=1)
            if name:
                found[f"{name}_model"] = whole.total / len(cache.layers)
                found[name] = sum(within) / len(within) if within else None
    return found


def main() -> None:
    options = parser(__doc__, "speed")
    options.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192])
    options.add_argument("--kept", type=float, default=0.25, help="aimed at")
    options.add_argument("--new-tokens", type=int, default=32)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--rehearse", action="store_true", help="also with a rehearsal")
    options.add_argument("--engine", default="loops", choices=list(ENGINES), help="of what forgets (%(default)s)")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.repeats, arguments.new_tokens = [512], 2, 4
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    ids = encode(setup.tokenizer, "\n\n".join(document.text for document in packaged_prose()))
    if ids.shape[1] < max(arguments.lengths):
        raise SystemExit(f"the packaged texts have only {ids.shape[1]} tokens")
    caches = (*CACHES, REHEARSED) if arguments.rehearse else CACHES
    for length in arguments.lengths:
        some = ids[:, :length].to(setup.model.device)
        for kind in caches:
            measure(setup, kind, arguments.kept, some, 2, arguments.engine)
        for repeat, kind in track(list(product(range(arguments.repeats), caches)), f"{length} tokens"):
            timed = partial(measure, setup, kind, arguments.kept, some, arguments.new_tokens, arguments.engine)
            named = {} if arguments.engine == "loops" else {"engine": arguments.engine}
            results.row(timed, tokens=length, cache=kind, repeat=repeat, **named)
    blocks = 3 * setup.memory.config.update_interval + 2
    for engine, rows in product(("full", *ENGINES), [1] if arguments.quick else [1, 4]):
        if engine != "ragged" or launching_module() is not None:
            some = ids[:, :blocks].expand(rows, -1).to(setup.model.device)
            results.row(partial(count, setup, engine, arguments.kept, some), launches=engine, rows=rows)
    results.write()


if __name__ == "__main__":
    main()
