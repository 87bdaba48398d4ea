"""How far a long command is, on standard error: bars on a terminal, now and then a line where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from namm.cli.console import errors

if TYPE_CHECKING:
    from namm.support.runs import Progress as RunProgress


class Update(Protocol):
    """To be called with a stage, how much of it is done, how much there is, and a note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


EVERY = 5.0  # seconds between two lines of a stage


@contextmanager
def stages() -> Iterator[Update]:
    """Reports the stages of a long work."""
    if errors.is_terminal:
        with _bars() as bars:
            yield bars
    else:
        yield Lines(lambda line: errors.print(line, soft_wrap=True))


@contextmanager
def progress_of_runs() -> Iterator[Callable[[RunProgress], None]]:
    """`stages`, for what tells a `namm.support.runs.Progress`."""
    with stages() as update:
        yield lambda now: update(now.stage, now.done, now.total, now.note)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is being done where it can't be said how much of it."""
    if errors.is_terminal:
        with errors.status(Text(what)):
            yield
    else:
        errors.print(what, soft_wrap=True)
        yield


class Lines:
    """An `Update` in plain lines: when a stage begins and ends, and in between every few seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._shown: dict[str, tuple[float, int, int]] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = self._clock()
        if stage in self._shown:
            then, before, of = self._shown[stage]
            if (done, total) == (before, of) or (done < total and now - then < EVERY):
                return
        self._shown[stage] = (now, done, total)
        self._write(f"{stage}: {done} of {total}" + (f", {note}" if note else ""))


@contextmanager
def _bars() -> Iterator[Update]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        TextColumn("{task.fields[note]}", markup=False),
        console=errors,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield update
