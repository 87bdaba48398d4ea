from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from namm.cli import common
from namm.cli.common import DEFAULT_MEMORY, DeviceOption, DtypeOption, ModelOption, console
from namm.cli.distill import LibraryOption, TextOption, TrainSplitOption, numbers, sources_of
from namm.learning import Progress, RefineConfig, improve
from namm.memory import NAMM, find_memory

BOUNDS = ",".join(f"{bound:g}" for bound in RefineConfig.bounds)


def refine(
    output: Annotated[Path, typer.Argument(help="Folder for the memory; the same command again resumes.")],
    start: Annotated[str, typer.Option("--from", help="Memory to begin with: shipped, folder or hub id.")] = (
        DEFAULT_MEMORY
    ),
    text: TextOption = None,
    model: ModelOption = common.DEFAULT_MODEL,
    documents: Annotated[int, typer.Option(min=2, help="How many passages to read, in all rounds.")] = 108,
    lengths: Annotated[str, typer.Option(help="Their lengths in tokens, taken in turn.")] = "1280,1024,2048",
    bounds: Annotated[
        str, typer.Option(help="For each round of reading and learning the most that a place counts for, in prices.")
    ] = BOUNDS,
    recall: Annotated[
        float, typer.Option(min=0.0, help="Weight of answers and quotations beside the passage itself.")
    ] = RefineConfig.recall,
    steps: Annotated[int, typer.Option(min=1, help="Steps of learning in each round.")] = 800,
    train_split: TrainSplitOption = False,
    library: LibraryOption = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Make a memory better by what its own decisions cost the model: a backward pass for every passage."""
    with common.one_clear_error():
        limits = tuple(numbers(bounds, float, "--bounds"))
        settings = RefineConfig(bounds=limits, recall=recall, steps=steps, seed=seed)
        memory = NAMM.from_pretrained(start)
        if find_memory(start).resolve() == output.resolve():
            raise ValueError(f"{output} is the memory to begin with: name another folder for the result")
        sources = sources_of(text, train_split, library)
        network, tokenizer = common.load(model, dtype, device)
        with common.stage_bars() as bars:

            def progress(now: Progress) -> None:
                bars(now.stage, now.done, now.total, now.note)

            improve(
                network,
                tokenizer,
                memory,
                sources,
                output,
                lengths=numbers(lengths, int, "--lengths"),
                documents=documents,
                settings=settings,
                progress=progress,
            )
        console.print(f"refined: {escape(str(output))}")
