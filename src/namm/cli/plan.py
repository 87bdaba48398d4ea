from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from namm.cli import options
from namm.cli.console import console, print_json, print_table
from namm.cli.options import Dtype

GIB = 2**30


@dataclass(frozen=True)
class Cache:
    """A line: bytes at the context asked for, and the longest context that fits beside the weights."""

    name: str
    size: int
    longest: int


def plan(
    model: Annotated[str, typer.Argument(help=f"config.json, folder, hub id, or one of {', '.join(options.CONFIGS)}.")],
    context: Annotated[str, typer.Option(help="Tokens: 8192, 128k, 1m.")] = "128k",
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    kept: Annotated[list[float] | None, typer.Option(help="Fractions kept; repeatable (0.5, 0.25, 0.125).")] = None,
    gpu: Annotated[float, typer.Option(min=0.1, help="GiB of GPU memory, of all GPUs together.")] = 80.0,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and cache.")] = Dtype.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """What the cache will cost, in full and with a memory, and whether it fits; from the configuration alone."""
    tokens = tokens_of(context)
    fractions = kept or [0.5, 0.25, 0.125]
    if any(not 0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions kept lie in (0, 1]: {fractions}")

    import torch

    from namm.memory import NAMM
    from namm.planning import plan as make_plan

    element = None if dtype == Dtype.AUTO else getattr(torch, dtype.value)
    found = make_plan(model, NAMM.from_pretrained(memory).config, dtype=element, batch=batch)
    room = round(gpu * GIB) - found.weights
    caches = [Cache("full", found.full(tokens), found.longest(room, None))]
    caches += [Cache(f"namm at {f:g}", found.kept(tokens, f), found.longest(room, f)) for f in fractions]
    if as_json:
        line = {"plan": asdict(found), "context": tokens, "gpu_bytes": round(gpu * GIB)}
        print_json(line | {"caches": [asdict(cache) for cache in caches]})
        return
    console.print(
        f"{model}: {found.parameters / 1e9:.2f} billion parameters, {found.weights / GIB:.1f} GiB of weights; "
        f"{found.layers} layers that forget, {found.heads} KV heads of {found.width}"
        + (f", {len(found.windows)} with sliding windows" if found.windows else "")
        + (f", {found.other_layers} of other kinds, not counted" if found.other_layers else "")
        + (f" ({found.quantised})" if found.quantised else "")
    )
    rows = [
        (
            cache.name,
            f"{cache.size / GIB:.2f}",
            f"{cache.size / caches[0].size:.3f}",
            f"{(found.weights + cache.size) / GIB:.1f}",
            "yes" if cache.size <= room else "no",
            f"{cache.longest:,}" if cache.longest else "none",
        )
        for cache in caches
    ]
    headings = ("cache", "GiB", "of full", "with weights", f"fits {gpu:g} GiB", "longest context")
    print_table(f"{tokens:,} tokens, batch {batch}", headings, rows)
    console.print(
        "Weights and cache, the memory's state and the queries of the running block included; leave room for "
        "activations, a few GiB."
    )


def tokens_of(text: str) -> int:
    """A number of tokens: ``k`` is 1,024 and ``m`` 1,024 times that.

    >>> tokens_of("128k")
    131072
    """
    found = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not found or not int(found[1]):
        raise ValueError(f"{text!r} is no number of tokens: 8192, 128k, 1m")
    return int(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2]]
