"""Candidates scored a second: a population in one batched pass against its members one by one, in turns in one run.

python benchmarks/evolution.py
python benchmarks/evolution.py --tokens 784 2064 --population 32 --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import namm
from namm.evaluation import answer_score
from namm.evolution.population import PopulationPolicy
from namm.policies import NAMMPolicy
from namm.tasks import packaged_prose, pass_key
from namm.tasks.answering import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[400, 784, 1296])
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
    memory = namm.NAMM.from_pretrained(arguments.memory)
    noise = torch.randn(arguments.population, len(memory.flat), generator=torch.Generator().manual_seed(0))
    flats = memory.flat + 0.01 * noise
    table = Table(title=f"population of {arguments.population}, {arguments.model}, {model.dtype}, {model.device}")
    for heading in ("tokens", "kept", "one by one, candidates/s", "batched, candidates/s", "ratio"):
        table.add_column(heading, justify="right")
    for tokens in arguments.tokens:
        sample = pass_key(packaged_prose("demo"), tokenizer, tokens=tokens, seed=0)
        parts = sample.token_ids(tokenizer)
        seconds: dict[str, list[float]] = {"single": [], "batched": []}
        kept: list[float] = []
        for _ in track(range(arguments.repeats + 1), f"{tokens} tokens"):  # the first warms up
            started = time.perf_counter()
            for flat in flats:
                answer_score(model, *parts, NAMMPolicy(replace(memory, flat=flat), kept=0.25))
            middle = time.perf_counter()
            policy = PopulationPolicy(replace(memory, flat=flats), kept=0.25)
            reading = read(model, [parts[0][0]], policy, rows=len(flats))
            reading.score(parts[1][0], parts[2][0])
            kept = reading.stats.kept_fractions
            seconds["single"].append(middle - started)
            seconds["batched"].append(time.perf_counter() - middle)
        single, batched = (len(flats) / statistics.median(found[1:]) for found in seconds.values())
        table.add_row(
            str(tokens), f"{sum(kept) / len(kept):.3f}", f"{single:.2f}", f"{batched:.2f}", f"{batched / single:.2f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
