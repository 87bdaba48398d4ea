from __future__ import annotations

from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, print_json
from namm.cli.options import Dtype
from namm.cli.progress import progress_of_runs


def refine(
    output: options.OutputArgument,
    start: Annotated[str, typer.Option("--from", help="Memory to begin with: shipped, folder or hub id.")] = (
        options.DEFAULT_MEMORY
    ),
    text: options.TextOption = None,
    model: options.ModelsOption = None,
    documents: Annotated[int, typer.Option(min=2, help="How many passages to read, in all rounds.")] = 36,
    lengths: Annotated[str, typer.Option(help="Their lengths in tokens, taken in turn.")] = "1280,1024,2048",
    bounds: Annotated[
        str, typer.Option(help="For each round of reading and learning the bound of what one token counts for.")
    ] = options.REFINE_BOUNDS,
    recall: Annotated[
        float, typer.Option(min=0.0, help="Weight of answers and quotations beside the passage itself.")
    ] = options.REFINE_RECALL,
    stride: Annotated[
        float, typer.Option(min=1e-6, help="How far scores are moved by what a decision saved.")
    ] = options.REFINE_STRIDE,
    steps: Annotated[int, typer.Option(min=1, help="Steps of learning in each round.")] = 800,
    train_split: options.TrainSplitOption = False,
    library: options.LibraryOption = False,
    seed: options.SeedOption = 0,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Make a memory better by what its own decisions cost the model: a backward pass for every passage."""
    from namm.learning import RefineConfig, refine_memory
    from namm.memory import NAMM, find_memory
    from namm.support.runs import check_output

    check_output(output, inputs=[*(model or ()), find_memory(start), *(text or ())])
    limits = tuple(common.numbers(bounds, float, "--bounds"))
    settings = RefineConfig(bounds=limits, recall=recall, stride=stride, steps=steps, seed=seed)
    memory = NAMM.from_pretrained(start)
    sources = common.sources_of(text, train_split, library)
    models = common.load_models(model, dtype, device)
    with progress_of_runs() as progress:
        refined = refine_memory(
            models,
            memory,
            sources,
            output,
            lengths=common.numbers(lengths, int, "--lengths"),
            documents=documents,
            settings=settings,
            progress=progress,
        )
    if as_json:
        print_json({"memory": str(output), "parameters": refined.config.parameters, "kept": refined.config.kept})
    else:
        console.print(f"refined: {output}")
