"""A model and its memory learn in turn: does each round of both answer more of what is kept?

    python benchmarks/in_turn.py                                     # SmolLM2, two rounds

A round: the model learns under the memory (`namm tune`, always from the model as it was), then the memory is refined
on what the tuned model loses by it (`namm refine --model ADAPTERS`). After each step the tuned model is asked, with its
full cache and with what the memory of that step keeps. What is learned is kept in --work: the same command goes on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lessons import add_lessons, ask, parsed, settings_of, taught, to_ask, to_learn, training_documents
from measuring import Measurements, Setup, load, made_with, parser

from namm.cli.progress import progress_of_runs
from namm.learning import RefineConfig, refine_memory

BASE, TUNED, REFINED = "base", "tuned", "refined"


def refined(tuned: Setup, arguments: Any, turn: int) -> Setup:
    """The same model with a memory that was refined on it."""
    with progress_of_runs() as progress:
        memory = refine_memory(
            [(tuned.model, tuned.tokenizer)],
            tuned.memory,
            [training_documents()],
            arguments.work / f"memory-{turn}",
            lengths=[arguments.length],
            documents=arguments.documents,
            settings=RefineConfig(steps=arguments.refining_steps, seed=turn),
            progress=progress,
        )
    return replace(tuned, memory=memory)


def main() -> None:
    options = parser(__doc__, "in_turn")
    add_lessons(options)
    options.add_argument("--turns", type=int, default=2)
    options.add_argument("--documents", type=int, default=36, help="that a memory is refined on")
    options.add_argument("--length", type=int, default=1280, help="of these, in tokens")
    options.add_argument("--refining-steps", type=int, default=800)
    with parsed(options) as arguments:
        if arguments.quick:
            arguments.turns, arguments.documents, arguments.length, arguments.refining_steps = 1, 2, 800, 2
        run(arguments)


def run(arguments: Any) -> None:
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    training, groups = to_learn(setup, arguments), to_ask(setup, arguments)
    asked, every = partial(ask, results, groups=groups, arguments=arguments), arguments.fractions
    of_memory = [fraction for fraction in every if fraction != 1]  # with its full cache a model says what it said
    asked(setup, name=BASE, fractions=every, step=BASE, turn=0, by=setup.memory.fingerprint())
    for turn in range(1, arguments.turns + 1):
        folder, settings = arguments.work / f"{TUNED}-{turn}", settings_of(arguments, True, seed=0)
        tuned, depends = taught(setup, training, folder, settings)
        name, by = f"{TUNED}, turn {turn}", setup.memory.fingerprint()
        asked(tuned, name=name, fractions=every, step=TUNED, turn=turn, by=by, **depends)
        better = refined(tuned, arguments, turn)
        name, by = f"{REFINED}, turn {turn}", better.memory.fingerprint()
        asked(better, name=name, fractions=of_memory, step=REFINED, turn=turn, by=by, **depends)
        setup = replace(setup, memory=better.memory)
    results.write()


if __name__ == "__main__":
    main()
