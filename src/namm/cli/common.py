"""What the commands share: options, errors, the table of policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from namm.evaluation import Comparison, compare
from namm.memory import NAMM
from namm.models import load_model

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_MEMORY = "smollm2-135m"

ModelOption = Annotated[str, typer.Option("--model", help="Embedded model, hub id, local folder or .gguf file.")]
MemoryOption = Annotated[str, typer.Option("--memory", help="Shipped memory, folder or hub id.")]
KeptOption = Annotated[
    float | None,
    typer.Option(
        "--kept",
        min=0.01,
        max=1.0,
        help="Aim at this kept fraction, for shipped memories 0.125 to 0.5 (else the memory's own choice).",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Where the model runs, for example cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

console = Console()
errors = Console(stderr=True)


@contextmanager
def one_clear_error() -> Iterator[None]:
    """What a user can mend is one sentence, not a traceback."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise typer.Exit(130) from None


def load(model: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    """Model and tokenizer, see `namm.load_model`; untyped, as transformers' own annotations lack `generate`."""
    with errors.status(f"loading {model}"):
        return load_model(model, dtype=dtype, device=device)


def read_text(file: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: if it is not UTF-8, or holds nothing but blanks.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


def progress_bars() -> Progress:
    """Bars on standard error with a description, a count, times and a task's field ``note``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=errors,
    )


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar for each stage of a long work: yields what is to be called with a stage, how much of how many, a note."""
    with progress_bars() as bars:
        stages: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total, note="")
            bars.update(stages[stage], completed=done, note=note)

        yield update


def writable_folder(output: Path) -> Path:
    """The folder, made if need be; ValueError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"can't write to {output}: {error.strerror or error}") from None
    return output


def run_comparison(
    model: PreTrainedModel, ids: Tensor, memory: NAMM, kept: float | None, tail: int
) -> list[Comparison]:
    with errors.status("measuring") as status:
        return list(
            compare(model, ids, memory, kept=kept, tail=tail, progress=lambda name: status.update(f"measuring {name}"))
        )


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Rows of texts; a line between those that begin differently, where more than one row begins alike.

    Args:
        left: columns aligned to the left, all others to the right.
    """
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    grouped = len({row[0] for row in rows}) < len(rows)
    for number, row in enumerate(rows):
        if grouped and number and row[0] != rows[number - 1][0]:
            table.add_section()
        table.add_row(*row)
    # a file or a pipe has no width of its own
    (console if console.is_terminal else Console(width=120)).print(table)


def print_comparison(title: str, rows: Sequence[Comparison]) -> None:
    headings = ("policy", "kept", "cache MiB", "loss", "rise", "prefill s")
    print_table(
        title,
        headings,
        [
            (
                row.policy,
                f"{row.tail.kept_fraction:.3f}",
                f"{row.tail.held_bytes / 2**20:.1f}",
                f"{row.tail.loss:.3f}",
                f"{row.rise:+.3f}",
                f"{row.tail.seconds:.1f}",
            )
            for row in rows
        ],
    )
