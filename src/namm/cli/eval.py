from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, errors, print_json, print_table
from namm.cli.options import Dtype
from namm.cli.progress import stages

RESULTS = "results.jsonl"


def evaluate(
    output: Annotated[
        Path | None, typer.Argument(help="Folder for results, table and plots; goes on where it stopped.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(options.SUITES)}; repeatable.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task, or file:PATH.jsonl in the format of LongBench; repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' files, in place of the hub.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Embedded model, hub id, local folder or .gguf file; repeatable.")
    ] = None,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(options.POLICIES)}; repeatable, else all.")
    ] = None,
    budget: Annotated[
        list[float] | None, typer.Option(help="Fraction to keep, or tokens; repeatable (0.5 and 0.25).")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of each task, at most (else all; of generated tasks 3).")
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Of generated prompts.")] = 1024,
    text: Annotated[list[Path] | None, typer.Option(help="Files or folders that generated tasks hide in.")] = None,
    metric: Annotated[str, typer.Option(help="Of file: tasks.")] = "f1",
    question_seen: Annotated[
        bool, typer.Option(help="Decide what to keep after the question instead of before it.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts in the model's chat template.")] = False,
    rehearse: options.RehearseOption = False,
    window: Annotated[int | None, typer.Option(min=64, help="Tokens of prompt and answer at most.")] = None,
    rope_factor: Annotated[float, typer.Option(min=1.0, help="Stretch rotary positions (NTK-aware).")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of generated tasks.")] = 0,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Print all tasks and suites.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Benchmarks under every policy: scores, absolute and of the full cache's, against what is really kept."""
    if list_tasks:
        _print_tasks(as_json)
        return
    if output is None:
        raise ValueError("name a folder for the results: namm eval OUTPUT --suite offline")
    if not suite and not task:
        raise ValueError("name what to evaluate: --suite offline, or --task NAME (--list prints them)")
    models = model or [options.DEFAULT_MODEL]

    from namm.support.runs import check_output, claim

    files = [name.removeprefix("file:") for name in task or () if name.startswith("file:")]
    check_output(output, inputs=[*models, memory, data, *(text or ()), *files])

    from namm.evaluation.benchmarks.base import Request
    from namm.evaluation.plots import plot_grid, plot_scores
    from namm.evaluation.run import EvalConfig, Evaluation, prepare
    from namm.evaluation.suites import find_tasks
    from namm.evaluation.table import HEADINGS, cells, lines, markdown
    from namm.memory import NAMM
    from namm.models.rope import extend_window
    from namm.support.files import strict_json, write_atomically
    from namm.support.journal import Journal, Row
    from namm.tasks import heldout_documents, read_documents

    tasks = find_tasks([*(suite or ()), *(task or ())], metric)
    prepare(tasks, plots=True)
    configs = [
        EvalConfig(
            name,
            memory,
            tuple(policy or options.POLICIES),
            tuple(sorted(budget or (0.5, 0.25), reverse=True)),
            question_seen,
            window,
            batch,
            rope_factor,
            chat,
            rehearse,
        )
        for name in models
    ]
    texts = read_documents(*text) if text else heldout_documents()
    own = NAMM.from_pretrained(memory)
    common.check_writable(output)
    rows: list[Row] = []
    # each result says what it depends on
    with claim(output, "evaluation", {}), Journal(output / RESULTS) as journal:
        for config in configs:
            network, tokenizer = common.load(config.model, dtype, device)
            if rope_factor > 1:
                extend_window(network, rope_factor)
            with stages() as update:
                run = Evaluation(network, tokenizer, own, config, journal, update, errors.print)
                rows += run.run(tasks, Request(tokenizer, data, tuple(texts), tokens, samples, seed))
        if not rows:
            raise ValueError("no task could be run")
        found = lines(rows)
        write_atomically(output / "table.md", markdown(found))
        write_atomically(output / "table.json", strict_json([vars(line) for line in found], indent=1) + "\n")
        plot_scores(found, output / "scores.png")
        plot_grid(rows, output / "grid.png")
    if as_json:
        print_json({"folder": str(output), "results": len(rows), "lines": [vars(line) for line in found]})
        return
    for name in dict.fromkeys(line.model for line in found):
        print_table(name, HEADINGS, [cells(line) for line in found if line.model == name], left=2)
    console.print(f"{len(rows)} results, table and plots are in {output}")


def _print_tasks(as_json: bool) -> None:
    from namm.evaluation.suites import SUITES, TASKS

    rest = [name for name in TASKS if all(name not in tasks for tasks in SUITES.values())]
    if as_json:
        print_json({"suites": {name: list(tasks) for name, tasks in SUITES.items()}, "other_tasks": rest})
        return
    for name, tasks in SUITES.items():
        console.print(f"{name}: {', '.join(tasks)}")
    console.print(f"and: {', '.join(rest)}; file:PATH.jsonl")
