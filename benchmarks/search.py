"""Evolution against random search from one start at equal numbers of candidates, over seeds, on test samples.

python benchmarks/search.py OUT                        # search.toml beside this file, three seeds
python benchmarks/search.py OUT --config benchmarks/search-scratch.toml    # from a network that has learned nothing
python benchmarks/search.py OUT --config cpu-demo      # a preset; hours on two cores

Every run has its own folder in OUT; the same command again goes on where it stopped. Model and memory are those of the
configuration.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from measuring import Measurements, Row, Setup, made_with, parser

import namm
from namm.evolution import Evolution, SampleSource, read_config, starting_memory
from namm.evolution.workers import in_process


def main() -> None:
    options = parser(__doc__, "search")
    options.add_argument("output", type=Path)
    options.add_argument(
        "--config", default=str(Path(__file__).with_name("search.toml")), help="a preset or a .toml file"
    )
    options.add_argument("--strategies", nargs="+", default=["cma-separable", "random"])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--generations", type=int, help="at most so many in each stage")
    arguments = options.parse_args()
    config = read_config(arguments.config)
    if arguments.quick:
        arguments.seeds, arguments.generations = [0], 1
    if arguments.generations is not None:
        config = config.at_most(arguments.generations)
    arguments.model, arguments.memory = config.model, config.start
    model, tokenizer = namm.load_model(config.model, device=arguments.device)
    setup = Setup(model, tokenizer, starting_memory(config.start))
    made = made_with(arguments, setup)
    results = Measurements(arguments, made)
    scorer = in_process(model, tokenizer, setup.memory)
    for seed in arguments.seeds:
        for strategy in arguments.strategies:
            settings = replace(config, seed=seed, strategy=strategy)
            source = SampleSource.read(settings, tokenizer)
            folder, own = arguments.output / f"{strategy}-{seed}", made["model"]["fingerprint"]
            outcome = Evolution(settings, setup.memory, source, scorer, folder, model=own).run()
            found: Row = {
                "candidates": sum(len(generation.fitness) for generation in outcome.history),
                "start": asdict(outcome.start),
                "final": asdict(outcome.final),
            }
            results.row(lambda found=found: found, seed=seed, strategy=strategy, config=arguments.config)
    results.write()


if __name__ == "__main__":
    main()
