from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common
from namm.cli.common import DeviceOption, DtypeOption, MemoryOption, console
from namm.evaluation.benchmarks.base import Request
from namm.evaluation.plots import plot_grid, plot_scores
from namm.evaluation.run import EvalConfig, Evaluation
from namm.evaluation.suites import SUITES, TASKS, find_tasks
from namm.evaluation.table import HEADINGS, cells, lines, markdown
from namm.memory import NAMM
from namm.models.rope import extend_window
from namm.policies.names import POLICIES
from namm.support.files import strict_json, write_atomically
from namm.support.journal import Journal, Row
from namm.support.runs import claim
from namm.tasks import heldout_documents, read_documents

RESULTS = "results.jsonl"


def evaluate(
    output: Annotated[
        Path | None, typer.Argument(help="Folder for results, table and plots; goes on where it stopped.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(SUITES)}; repeatable.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task, or file:PATH.jsonl in the format of LongBench; repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' files, in place of the hub.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Embedded model, hub id, local folder or .gguf file; repeatable.")
    ] = None,
    memory: MemoryOption = common.DEFAULT_MEMORY,
    policy: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(POLICIES)}; repeatable, else all.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Fraction to keep; repeatable (0.5 and 0.25).")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of each task, at most (else all; of generated tasks 3).")
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Of generated prompts.")] = 1024,
    text: Annotated[list[Path] | None, typer.Option(help="Files or folders that generated tasks hide in.")] = None,
    metric: Annotated[str, typer.Option(help="Of file: tasks.")] = "f1",
    question_seen: Annotated[
        bool, typer.Option(help="Decide what to keep after the question instead of before it.")
    ] = False,
    window: Annotated[int | None, typer.Option(min=64, help="Tokens of prompt and answer at most.")] = None,
    rope_factor: Annotated[float, typer.Option(min=1.0, help="Stretch rotary positions (NTK-aware).")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of generated tasks.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Print all tasks and suites.")] = False,
) -> None:
    """Benchmarks under every policy: scores, absolute and of the full cache's, against what is really kept."""
    with common.one_clear_error():
        if list_tasks:
            _print_tasks()
            return
        if output is None:
            raise ValueError("name a folder for the results: namm eval OUTPUT --suite offline")
        if not suite and not task:
            raise ValueError("name what to evaluate: --suite offline, or --task NAME (--list prints them)")
        tasks = find_tasks([*(suite or ()), *(task or ())], metric)
        configs = [
            EvalConfig(
                name,
                memory,
                tuple(policy or POLICIES),
                tuple(sorted(budget or (0.5, 0.25), reverse=True)),
                question_seen,
                window,
                batch,
                rope_factor,
            )
            for name in model or [common.DEFAULT_MODEL]
        ]
        texts = read_documents(*text) if text else heldout_documents()
        own = NAMM.from_pretrained(memory)
        folder = common.writable_folder(output)
        rows: list[Row] = []
        with claim(folder, "evaluation", {}), Journal(folder / RESULTS) as journal:
            for config in configs:
                network, tokenizer = common.load(config.model, dtype, device)
                if rope_factor > 1:
                    extend_window(network, rope_factor)
                with common.stage_bars() as bar:
                    run = Evaluation(
                        network,
                        tokenizer,
                        own,
                        config,
                        journal,
                        bar,
                        lambda line: common.errors.print(line, markup=False),
                    )
                    rows += run.run(tasks, Request(tokenizer, data, tuple(texts), tokens, samples, seed))
        if not rows:
            raise ValueError("no task could be run")
        found = lines(rows)
        write_atomically(folder / "table.md", markdown(found))
        write_atomically(folder / "table.json", strict_json([vars(line) for line in found], indent=1))
        plot_scores(found, folder / "scores.png")
        plot_grid(rows, folder / "grid.png")
        for name in dict.fromkeys(line.model for line in found):
            common.print_table(name, HEADINGS, [cells(line) for line in found if line.model == name], left=2)
        console.print(f"{len(rows)} results, table and plots are in {folder}")


def _print_tasks() -> None:
    for name, tasks in SUITES.items():
        console.print(f"[bold]{name}[/bold]: {', '.join(tasks)}", highlight=False)
    rest = [name for name in TASKS if all(name not in tasks for tasks in SUITES.values())]
    console.print(f"and: {', '.join(rest)}; file:PATH.jsonl", highlight=False)
