"""Evolution against random search from one start, over seeds, judged on tasks and texts that nothing was chosen by.

python benchmarks/search.py OUT                        # search.toml beside this file, three seeds
python benchmarks/search.py OUT --config benchmarks/search-scratch.toml --rules h2o streaming    # from nothing
python benchmarks/search.py OUT --config universal --seeds 0 1 2 3 4       # a preset; days on two cores

Every strategy scores equally many samples for candidates. Start and result keep the same fraction of the same samples,
which are others for every seed: tasks that no stage has, on the packaged prose that nothing learned from and the
library code that the search set aside, and running text of these.

Every run has its own folder in OUT, with the memory and a plot of its fitness; the same command again goes on where it
stopped. Models and memory are those of the
configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from measuring import Measurements, Row, described, parser, rule, surroundings
from torch import Tensor

import namm
from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.ruler import RULER
from namm.evolution import Evolution, EvolveConfig, SampleSource, read_config, read_sources, starting_memory
from namm.evolution.directions import recorded_heads
from namm.evolution.fitness import Work, relative
from namm.evolution.objective import NATS, RUNNING_TEXT
from namm.evolution.report import plot
from namm.evolution.samples import Drawn
from namm.evolution.workers import Loaded, Map, Setup, in_process, processes
from namm.policies import Full
from namm.policies.names import make_policy
from namm.tasks import GENERATORS, Document, Sample, packaged_prose
from namm.tasks.answering import answer_score

UNSEEN = (
    "passage_retrieval",
    "dialogue_topic",
    "ruler/niah_single_3",
    "ruler/niah_multikey_1",
    "ruler/niah_multikey_3",
)


def main() -> None:
    options = parser(__doc__, "search", model=False)
    options.add_argument("output", type=Path)
    options.add_argument(
        "--config", default=str(Path(__file__).with_name("search.toml")), help="a preset or a .toml file"
    )
    options.add_argument("--strategies", nargs="+", help="the configuration's and random")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--generations", type=int, help="at most so many in each stage")
    options.add_argument("--unseen", nargs="+", default=UNSEEN, help="tasks to be judged by, but for those of a stage")
    options.add_argument("--samples", type=int, default=8, help="of each of these and each model, by seed")
    options.add_argument("--rules", nargs="*", default=[], type=rule, help="also the stages' own tasks, beside these")
    options.add_argument("--workers", type=int, default=0, help="processes that score samples; 0: this one")
    options.add_argument("--device", help="where the models run, for example cuda")
    arguments = options.parse_args()
    config = read_config(arguments.config)
    if arguments.quick:
        arguments.seeds, arguments.generations, arguments.samples = [0], 1, 1
    if arguments.generations is not None:
        config = config.at_most(arguments.generations)
    loaded = {name: namm.load_model(name, dtype=config.dtype, device=arguments.device) for name in config.models}
    start = starting_memory(config.start)
    made = {
        "models": [described(name, model) for name, (model, _) in loaded.items()],
        "memory": {"name": config.start, "fingerprint": start.fingerprint()},
    } | surroundings(next(iter(loaded.values()))[0].device)
    own = {described["name"]: described["fingerprint"] for described in made["models"]}
    scorer = in_process(loaded, start)
    if arguments.workers:
        threads = 1 if arguments.workers > 1 else None
        scorer = processes(Setup(own, config.dtype, arguments.device, start, threads), arguments.workers)
    results = Measurements(arguments, made)
    for seed in arguments.seeds:
        for strategy in arguments.strategies or dict.fromkeys([config.strategy, "random"]):
            settings = replace(config, seed=seed, strategy=strategy)
            search = partial(searched, settings, loaded, own, scorer, arguments)
            results.row(search, seed=seed, strategy=strategy, config=Path(arguments.config).name)
    results.write()


def searched(
    config: EvolveConfig,
    loaded: Mapping[str, Loaded],
    fingerprints: Mapping[str, str],
    scorer: Map,
    arguments: argparse.Namespace,
) -> Row:
    """One search, and what came of it."""
    start = starting_memory(config.start)
    sources = read_sources(config, {name: tokenizer for name, (_, tokenizer) in loaded.items()})
    folder = arguments.output / f"{config.strategy}-{config.seed}"

    def record(one: Drawn) -> list[Tensor]:
        return recorded_heads(*loaded[one.model], start, one.sample, config.share(start))

    outcome = Evolution(config, start, sources, scorer, folder, models=fingerprints, record=record).run()
    plot(outcome, config, folder / "fitness.png")
    own = dict.fromkeys(task for stage in config.stages for task in stage.tasks if task in GENERATORS)
    tasks = [*(task for task in arguments.unseen if task not in own), RUNNING_TEXT]
    if arguments.rules:
        tasks = list(dict.fromkeys([*tasks, *own]))
    flats = torch.stack([start.flat, outcome.memory.flat])
    works = {
        f"{number}": (task, Work(f"{number}", model, sample, NATS, flats, config.share(start)))
        for number, (model, task, sample) in enumerate(unseen(config, sources, tasks, arguments.samples))
    }
    judged = [
        {"model": works[key][1].model, "task": works[key][0]}
        | {"own": works[key][0] in own and works[key][0] != RUNNING_TEXT}
        | {name: asdict(one) for name, one in zip(("start", "final"), scores, strict=True)}
        | under_rules(arguments.rules, loaded, works[key][1], config.kept, start)
        for key, scores in scorer([work for _, work in works.values()])
        if scores is not None
    ]
    return {
        "candidates": sum(len(generation.fitness) for generation in outcome.history),
        "candidate_samples": sum(generation.samples for generation in outcome.history),
        "start": asdict(outcome.start),
        "final": asdict(outcome.final),
        "judged": judged,
    }


def under_rules(rules: list[str], loaded: Mapping[str, Loaded], work: Work, kept: float, start: namm.NAMM) -> Row:
    """What hand-designed rules score on a sample at a kept fraction, deciding when the start does."""
    if not rules:
        return {}
    model, tokenizer = loaded[work.model]
    parts = work.sample.token_ids(tokenizer)
    full = answer_score(model, *parts, Full())
    found = {name: answer_score(model, *parts, make_policy(name, kept, start)) for name in rules}
    return {
        name: {"value": relative(one.log_probability, full.log_probability, NATS), "kept": one.kept_fraction}
        for name, one in found.items()
    }


def unseen(
    config: EvolveConfig, sources: Mapping[str, SampleSource], tasks: list[str], count: int
) -> Iterator[tuple[str, str, Sample]]:
    """Model, task and sample, `count` of each task, by the configuration's seed."""
    tokens = config.stages[-1].tokens
    for model, source in sources.items():
        code = [document for document in source.documents["test"] if document.kind == "code"]
        texts = [*packaged_prose("heldout"), *code]
        for task in tasks:
            for number in range(count):
                seed, length = config.seed * 1000 + number, tokens[number % len(tokens)]
                if task in GENERATORS:
                    yield model, task, GENERATORS[task](texts, source.tokenizer, tokens=length, seed=seed)
                else:
                    yield model, task, of_ruler(task, texts, source, length, seed)


def of_ruler(task: str, texts: list[Document], source: SampleSource, tokens: int, seed: int) -> Sample:
    """A sample of one of RULER's tasks."""
    asked = Request(source.tokenizer, text=tuple(texts), tokens=tokens, samples=1, seed=seed)
    (question,) = RULER[task].questions(asked)
    return Sample(question.context, question.question, f" {question.answers[0]}")


if __name__ == "__main__":
    main()
