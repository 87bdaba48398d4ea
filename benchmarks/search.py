"""Evolution against random search from one start at equal numbers of candidates, over seeds, on test samples.

python benchmarks/search.py OUT                        # search.toml beside this file, three seeds
python benchmarks/search.py OUT --config benchmarks/search-scratch.toml    # from a network that has learned nothing
python benchmarks/search.py OUT --config cpu-demo      # a preset; hours on two cores

Every run has its own folder in OUT; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import namm
from namm.evolution import Evolution, SampleSource, read_config, starting_memory
from namm.evolution.run import Tested
from namm.evolution.workers import in_process
from namm.support.fingerprints import model_fingerprint
from namm.support.statistics import mean_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--config", default=str(Path(__file__).with_name("search.toml")), help="a preset or a .toml file"
    )
    parser.add_argument("--strategies", nargs="+", default=["cma-separable", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generations", type=int, help="at most so many in each stage")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    if arguments.generations is not None:
        config = config.at_most(arguments.generations)
    model, tokenizer = namm.load_model(config.model, device=arguments.device)
    memory = starting_memory(config.start)
    scorer, own = in_process(model, tokenizer, memory), model_fingerprint(model)
    console = Console(width=120)
    found: dict[str, list[Tested]] = {}
    for seed in arguments.seeds:
        for strategy in arguments.strategies:
            settings = replace(config, seed=seed, strategy=strategy)
            source = SampleSource.read(settings, tokenizer)
            folder = arguments.output / f"{strategy}-{seed}"
            outcome = Evolution(settings, memory, source, scorer, folder, model=own).run()
            console.print(f"{folder}: {outcome.start.fitness:.3f} to {outcome.final.fitness:.3f}", highlight=False)
            if strategy == arguments.strategies[0]:
                found.setdefault("start", []).append(outcome.start)
            found.setdefault(strategy, []).append(outcome.final)
            candidates = sum(len(generation.fitness) for generation in outcome.history)
    table = Table(title=f"{candidates} candidates each; test samples, mean over seeds ± half the 95% interval")
    for heading in ("search", "seeds", "fitness", "gain over the start", "score", "kept"):
        table.add_column(heading, justify="right")
    for name, tested in found.items():
        fitness, spread = mean_interval([one.fitness for one in tested])
        pairs = zip(tested, found["start"], strict=True)
        gain, gain_spread = mean_interval([one.fitness - start.fitness for one, start in pairs])
        table.add_row(
            name,
            str(len(tested)),
            f"{fitness:.3f} ± {spread:.3f}",
            f"{gain:+.3f} ± {gain_spread:.3f}",
            f"{mean_interval([one.value for one in tested])[0]:.3f}",
            f"{mean_interval([one.kept for one in tested])[0]:.3f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
