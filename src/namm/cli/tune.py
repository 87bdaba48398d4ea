from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, print_json
from namm.cli.options import Dtype
from namm.cli.progress import progress_of_runs

if TYPE_CHECKING:
    from namm.learning import Text

ALL = 1.0  # --kept that forgets nothing


class Objective(StrEnum):
    """What a model learns."""

    LM = "lm"
    ANSWERS = "answers"
    DISTILL = "distill"


def tune(
    output: Annotated[Path, typer.Argument(help="Folder for the adapters; the same command again resumes.")],
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    kept: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Fraction of the tokens that the memory keeps; 1: the full cache.")
    ] = 0.25,
    text: options.TextOption = None,
    objective: Annotated[
        Objective,
        typer.Option(
            help="lm: the next token of texts. answers: of .jsonl files with context, input and answers. "
            "distill: what the model says of texts with its full cache."
        ),
    ] = Objective.LM,
    length: Annotated[int, typer.Option(min=64, help="Tokens of a text, or of a context at most.")] = 2048,
    documents: Annotated[int, typer.Option(min=2, help="How many texts to cut; of questions all are taken.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Steps of learning.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Texts a step.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=1e-8, help="At its highest.")] = 2e-4,
    piece: Annotated[int, typer.Option(min=1, help="Tokens fed at once, after which a budget is met.")] = 512,
    masked: Annotated[
        str | None,
        typer.Option(
            help="Engine (loops, padded, ragged) that decides beforehand; then a text is one call under a mask: faster "
            "on a GPU, in the memory of the full cache."
        ),
    ] = None,
    checkpoint_layers: Annotated[
        bool, typer.Option(help="Compute layers again in the backward pass too: slower, in far less memory.")
    ] = False,
    train_split: options.TrainSplitOption = False,
    library: options.LibraryOption = False,
    seed: options.SeedOption = 0,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Let a model learn while its memory forgets: adapters (LoRA) by exact gradients through what is kept."""
    from namm.learning import TuneConfig
    from namm.learning import tune as run
    from namm.memory import NAMM, find_memory
    from namm.support.extras import require
    from namm.support.runs import check_output

    require(["peft"], "tune")
    check_output(output, inputs=[model, find_memory(memory), *(text or ())])
    settings = TuneConfig(
        objective=objective.value,
        kept=None if kept == ALL else kept,
        steps=steps,
        batch=batch,
        rank=rank,
        alpha=2.0 * rank,
        learning_rate=learning_rate,
        piece=piece,
        masked=masked,
        checkpoint_layers=checkpoint_layers,
        seed=seed,
    )
    loaded, tokenizer = common.load(model, dtype, device)
    texts = _texts(objective, text, tokenizer, length, documents, train_split, library, seed)
    with progress_of_runs() as progress:
        losses = run(loaded, NAMM.from_pretrained(memory), texts, output, settings=settings, progress=progress)
    if as_json:
        print_json({"adapters": str(output), "texts": len(texts), "losses": losses})
    else:
        console.print(f"tuned: {output}")


def _texts(
    objective: Objective,
    text: list[Path] | None,
    tokenizer: object,
    length: int,
    documents: int,
    train_split: bool,
    library: bool,
    seed: int,
) -> list[Text]:
    """What is learned from.

    Raises:
        ValueError: where questions are wanted and there is no file of them.
    """
    from namm.learning import asked_texts, plain_text
    from namm.learning.passages import cut_evenly, deal
    from namm.tasks.longbench import longbench_samples

    if objective is Objective.ANSWERS:
        files = [path for path in text or () if path.suffix == ".jsonl"]
        if not files or len(files) != len(text or ()):
            raise ValueError("--objective answers takes --text of .jsonl files with context, input and answers")
        samples = [sample for path in files for sample in longbench_samples(str(path))]
        return asked_texts(samples, tokenizer, length)  # type: ignore[arg-type]  # as `load` gives it
    sources = common.sources_of(text, train_split, library)
    cut = cut_evenly(tokenizer, sources, lengths=[length], count=documents, facts=0, seed=seed)  # type: ignore[arg-type]
    return [plain_text(passage) for passage in deal(cut, documents, 1)[0]]
