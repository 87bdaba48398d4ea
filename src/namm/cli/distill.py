from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from namm.cli import common
from namm.cli.common import DeviceOption, DtypeOption, ModelOption, console
from namm.learning import DistillConfig, Progress, TrainConfig
from namm.learning import distill as run
from namm.memory import NAMMConfig
from namm.tasks import Document, read_documents, split_documents, standard_library_documents

TextOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="File or folder of texts (.txt, .md, source code, .jsonl); repeat it for more. "
        "Default: Python's standard library.",
    ),
]
TrainSplitOption = Annotated[
    bool, typer.Option("--train-split", help="Of --text, learn from the training split only (namm.tasks).")
]
LibraryOption = Annotated[bool, typer.Option("--library", help="Read Python's standard library as well as --text.")]


def distill(
    output: Annotated[Path, typer.Argument(help="Folder for the memory; the same command again resumes.")],
    text: TextOption = None,
    model: ModelOption = common.DEFAULT_MODEL,
    documents: Annotated[int, typer.Option(min=2, help="How many passages to read.")] = 24,
    lengths: Annotated[str, typer.Option(help="Their lengths in tokens, taken in turn.")] = "1792,2560",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1200,
    kept: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="The fraction that the memory aims at by itself.")
    ] = 0.25,
    power: Annotated[float, typer.Option(min=0.1, help="Of a token's influence whose expectation is learned.")] = 0.7,
    facts: Annotated[int, typer.Option(min=0, help="One hidden random fact for so many tokens; 0: none.")] = 150,
    train_split: TrainSplitOption = False,
    library: LibraryOption = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    update_interval: Annotated[int, typer.Option(help="Tokens between two decisions.")] = 256,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the backward attention.")] = 32,
    ema: Annotated[str, typer.Option(help="Coefficients of the moving averages.")] = "0.99,0.999",
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Learn a memory from any model's attention on any texts: minutes, no rollouts."""
    with common.one_clear_error():
        config = NAMMConfig(
            hidden=hidden,
            update_interval=update_interval,
            ema=tuple(numbers(ema, float, "--ema")),
            compression="log",
            normalised=True,
            state_dtype="bfloat16",
        )
        settings = DistillConfig(
            lengths=tuple(numbers(lengths, int, "--lengths")),
            documents=documents,
            kept=kept,
            facts=facts,
            training=TrainConfig(steps=steps, seed=seed, power=power),
        )
        texts = [document for source in sources_of(text, train_split, library) for document in source]
        network, tokenizer = common.load(model, dtype, device)
        with common.stage_bars() as bars:

            def progress(now: Progress) -> None:
                bars(now.stage, now.done, now.total, now.note)

            memory = run(network, tokenizer, texts, output, memory=config, settings=settings, progress=progress)
        console.print(f"{memory.config.parameters} parameters in {escape(str(output))}; it aims at keeping {kept:.0%}")


def sources_of(text: list[Path] | None, train_split: bool, library: bool) -> list[list[Document]]:
    """Documents to learn from, by where they come from."""
    sources = [read_documents(path) for path in text or ()]
    if train_split:
        sources = [split_documents(source, seed=0)["train"] for source in sources]
    if library or not text:
        sources.append(split_documents(standard_library_documents(), seed=0)["train"])  # the rest is for evaluation
    return sources


def numbers(text: str, kind: type, option: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers separated by commas, not {text!r}") from None
