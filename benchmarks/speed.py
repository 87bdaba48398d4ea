"""Prefill time, decode time and cache bytes of a memory beside a full cache and a sliding one, as ratios of one run.

    python benchmarks/speed.py                        # SmolLM2 at 1k, 4k and 8k tokens
    python benchmarks/speed.py --model my/model --memory my/memory --device cuda --lengths 4096 32768

The full cache is transformers' own: sdpa and DynamicCache. Every repetition runs all of them one after the other, and
the best time of each counts, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

import namm
from namm.policies import NAMMPolicy, Streaming
from namm.tasks import packaged_prose
from namm.tasks.encode import encode


def synchronise(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def cache_bytes(cache: Cache) -> dict[str, float]:
    """Bytes held, read from the tensors' storage."""
    if isinstance(cache, namm.MemoryCache):
        stats = cache.stats()
        return {
            "kv": stats.kv_bytes,
            "logical": stats.logical_kv_bytes,
            "other": stats.held_bytes - stats.kv_bytes,
            "kept": stats.kept_fraction,
        }
    kv = sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return {"kv": kv, "logical": kv, "other": 0, "kept": 1.0}


def new_cache(model: PreTrainedModel, kind: str, memory: namm.NAMM, kept: float | None) -> Cache:
    if kind == "full":
        model.set_attn_implementation("sdpa")
        return DynamicCache(config=model.config)
    if kind == "streaming":
        return namm.MemoryCache(model, Streaming(budget=kept or 0.3, update_interval=memory.config.update_interval))
    return namm.MemoryCache(model, NAMMPolicy(memory, kept=kept))


@torch.inference_mode()
def measure(model: PreTrainedModel, cache: Cache, ids: torch.Tensor, new_tokens: int) -> dict[str, float]:
    started = synchronise(model)
    model(ids, past_key_values=cache, logits_to_keep=1)
    prefilled = synchronise(model)
    held = cache_bytes(cache)
    for step in range(new_tokens):
        model(ids[:, step : step + 1], past_key_values=cache)
    return {"prefill": prefilled - started, "decode": synchronise(model) - prefilled} | held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--kept", type=float, help="aim at this kept fraction (else the memory's own choice)")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
    memory = namm.NAMM.from_pretrained(arguments.memory)
    text = "\n\n".join(document.text for document in packaged_prose())
    document = encode(tokenizer, text).to(model.device)
    table = Table(title=f"{arguments.model}, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads")
    for heading in ("tokens", "cache", "kept", "prefill s", "ratio", "decode ms", "ratio", "K and V MiB"):
        table.add_column(heading, justify="right")
    for heading in ("over logical", "all held over full"):
        table.add_column(heading, justify="right")
    results = []
    for length in arguments.lengths:
        ids = document[:, :length]
        if ids.shape[1] < length:
            raise SystemExit(f"the packaged texts have only {ids.shape[1]} tokens")
        best: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for kind in ("full", "streaming", "namm"):
                found = measure(model, new_cache(model, kind, memory, arguments.kept), ids, arguments.new_tokens)
                before = best.setdefault(kind, found)
                best[kind] = found | {key: min(before[key], found[key]) for key in ("prefill", "decode")}
        full = best["full"]
        for kind, found in best.items():
            row = found | {
                "tokens": length,
                "cache": kind,
                "prefill_ratio": found["prefill"] / full["prefill"],
                "decode_ratio": found["decode"] / full["decode"],
                "kv_over_logical": found["kv"] / found["logical"],
                "held_over_full": (found["kv"] + found["other"]) / full["kv"],
            }
            results.append(row)
            table.add_row(
                str(length),
                kind,
                f"{row['kept']:.3f}",
                f"{row['prefill']:.2f}",
                f"{row['prefill_ratio']:.2f}",
                f"{1000 * row['decode'] / arguments.new_tokens:.1f}",
                f"{row['decode_ratio']:.2f}",
                f"{row['kv'] / 2**20:.1f}",
                f"{row['kv_over_logical']:.2f}",
                f"{row['held_over_full']:.2f}",
            )
    print(json.dumps(results)) if arguments.json else Console(width=130).print(table)


if __name__ == "__main__":
    main()
