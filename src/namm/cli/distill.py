from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, print_json
from namm.cli.options import Dtype
from namm.cli.progress import progress_of_runs


def distill(
    output: options.OutputArgument,
    text: options.TextOption = None,
    model: options.ModelsOption = None,
    documents: Annotated[int, typer.Option(min=2, help="How many passages each model reads.")] = 12,
    lengths: Annotated[str, typer.Option(help="Their lengths in tokens, taken in turn.")] = "1792,2560",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 600,
    kept: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="The fraction that the memory keeps by itself.")
    ] = 0.25,
    power: Annotated[float, typer.Option(min=0.1, help="Of a token's influence whose expectation is learned.")] = 0.7,
    facts: Annotated[int, typer.Option(min=0, help="One hidden random fact for so many tokens; 0: none.")] = 150,
    train_split: options.TrainSplitOption = False,
    library: options.LibraryOption = False,
    seed: options.SeedOption = 0,
    update_interval: Annotated[int, typer.Option(help="Tokens between two decisions.")] = 256,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the backward attention.")] = 32,
    ema: Annotated[str, typer.Option(help="Coefficients of the moving averages.")] = "0.99,0.999",
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Learn a memory from any model's attention on any texts: minutes, no rollouts."""
    from namm.learning import DistillConfig, TrainConfig
    from namm.learning import distill as run
    from namm.memory import UNIVERSAL
    from namm.support.runs import check_output

    check_output(output, inputs=[*(model or ()), *(text or ())])
    averages = tuple(common.numbers(ema, float, "--ema"))
    config = replace(UNIVERSAL, hidden=hidden, update_interval=update_interval, ema=averages)
    settings = DistillConfig(
        lengths=tuple(common.numbers(lengths, int, "--lengths")),
        documents=documents,
        kept=kept,
        facts=facts,
        training=TrainConfig(steps=steps, seed=seed, power=power),
    )
    sources = common.sources_of(text, train_split, library)
    models = common.load_models(model, dtype, device)
    with progress_of_runs() as progress:
        memory = run(models, sources, output, memory=config, settings=settings, progress=progress)
    if as_json:
        print_json({"memory": str(output), "parameters": memory.config.parameters, "kept": kept})
    else:
        console.print(f"{memory.config.parameters} parameters in {output}; it keeps {kept:.0%} by itself")
