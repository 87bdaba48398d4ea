"""Does a model that learns while it forgets live better with it?

Questions about long texts, asked of a base model, of one that learned on its full cache, and of one that learned under
its memory; each with the full cache and with what a memory keeps.

    python benchmarks/tune.py                                        # SmolLM2, three seeds
    python benchmarks/tune.py --model qwen2.5-coder-0.5b --json benchmarks/results/tune-qwen.json
    python benchmarks/tune.py --device cuda --engine ragged --masked ragged --workers 7       # side by side on a GPU

Training texts and test texts come from different documents. Questions come after the decision, as always. What is
learned is kept in --work, and each row as soon as it is there: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lessons import add_lessons, ask, parsed, settings_of, taught, to_ask, to_learn
from measuring import Measurements, Row, command_of, load, made_with, parser

BASE, FULL, MEMORY = "base", "full", "memory"


def learners(arguments: Any) -> list[tuple[str, int]]:
    """Who is asked: on what it learned, and its seed."""
    return [(learned, seed) for learned in arguments.learned for seed in ([0] if learned == BASE else arguments.seeds)]


def main() -> None:
    options = parser(__doc__, "tune")
    add_lessons(options)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--learned", nargs="+", default=[BASE, FULL, MEMORY], choices=[BASE, FULL, MEMORY])
    options.add_argument("--workers", type=int, default=0, help="processes, each with one learner at a time")
    with parsed(options) as arguments:
        if arguments.quick:
            arguments.seeds = arguments.seeds[:1]
        side_by_side(arguments) if arguments.workers else run(arguments)


def run(arguments: Any) -> None:
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    training, groups = to_learn(setup, arguments), to_ask(setup, arguments)
    for learned, seed in learners(arguments):
        name, learner, depends = f"{learned}, seed {seed}", setup, Row()
        if learned != BASE:
            settings = settings_of(arguments, learned == MEMORY, seed)
            learner, depends = taught(setup, training, arguments.work / f"{learned}-{seed}", settings)
        ask(results, learner, groups, arguments, name, arguments.fractions, learned=learned, seed=seed, **depends)
    results.write()


def side_by_side(arguments: Any) -> None:
    """The same command for each learner alone, with a file of its own in the folder of adapters; then one of all."""

    def alone(learner: tuple[str, int]) -> Path:
        learned, seed = learner
        part: Path = arguments.work / f"{learned}-{seed}.json"
        own = ["--workers", "0", "--learned", learned, "--seeds", str(seed), "--json", str(part)]
        argv = [*sys.argv, "--work", str(arguments.work), *own]
        if not part.exists() or json.loads(part.read_text())["command"] != command_of(argv):  # of other options
            with part.with_suffix(".log").open("w") as log:
                subprocess.run([sys.executable, *argv], check=True, stdout=log, stderr=subprocess.STDOUT)
        return part

    arguments.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.workers) as pool:
        parts = [json.loads(part.read_text()) for part in pool.map(alone, learners(arguments))]
    made = {name: parts[0][name] for name in ("model", "memory", "versions", "machine")}
    if other := [name for name in ("model", "memory", "versions") if any(part[name] != made[name] for part in parts)]:
        raise SystemExit(
            f"{arguments.work} has results of another {', '.join(other)}: delete them, or name another --work"
        )
    results = Measurements(arguments, made)
    results.rows = [row for part in parts for row in part["rows"]]
    results.write()


if __name__ == "__main__":
    main()
