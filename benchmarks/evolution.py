"""Candidates scored a second: what comes before the first eviction read once, against each reading for itself.

python benchmarks/evolution.py
python benchmarks/evolution.py --tokens 784 2064 --population 32 --device cuda
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from measuring import Measurements, Row, load, made_with, parser
from rich.progress import track

from namm.evolution.reading import SharedReading
from namm.policies import NAMMPolicy
from namm.tasks import packaged_prose, pass_key
from namm.tasks.answering import answer_score


def main() -> None:
    options = parser(__doc__, "evolution")
    options.add_argument("--tokens", type=int, nargs="+", default=[400, 784, 1024, 2064])
    options.add_argument("--population", type=int, default=16)
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.population, arguments.repeats = [400], 2, 1
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    memory = setup.memory
    noise = torch.randn(arguments.population, len(memory.flat), generator=torch.Generator().manual_seed(0))
    policies = [NAMMPolicy(replace(memory, flat=flat), kept=0.25) for flat in memory.flat + 0.01 * noise]
    for tokens in arguments.tokens:
        sample = pass_key(packaged_prose("demo"), setup.tokenizer, tokens=tokens, seed=0)
        parts = sample.token_ids(setup.tokenizer)

        def measure(parts: tuple[torch.Tensor, ...] = parts) -> Row:
            context, question, answer = parts
            started = time.perf_counter()
            for policy in policies:
                answer_score(setup.model, context, question, answer, policy)
            between = time.perf_counter()
            shared = SharedReading.of(setup.model, context[0], memory, 0.25)
            for policy in policies:
                shared.under(policy).score(question[0], answer[0])
            return {"one_by_one_seconds": between - started, "shared_seconds": time.perf_counter() - between}

        answer_score(setup.model, *parts, policies[0])  # warms up
        for repeat in track(range(arguments.repeats), f"{tokens} tokens"):
            results.row(measure, tokens=tokens, population=arguments.population, repeat=repeat)
    results.write()


if __name__ == "__main__":
    main()
