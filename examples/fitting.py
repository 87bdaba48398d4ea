"""What the examples share: a training loop that goes on after kill -9 where it stopped; names and tables of results."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from torch import Tensor, nn

from namm.evaluation import mean_interval
from namm.support.journal import Row

RULES = ("h2o", "snapkv", "tova", "keydiff", "streaming", "random")  # that keep as many tokens as the memory did

SAVE_EVERY = 100  # updates


def counted(numbers: range, what: str) -> Iterable[int]:
    """The numbers, with a bar on standard error, so that what is printed is the same in every run."""
    return track(numbers, what, console=Console(stderr=True))


def digest(tensors: Iterable[Tensor], *rest: object) -> str:
    """A short name of weights and settings, so that results of others are not taken for theirs."""
    seen = hashlib.sha256(repr(rest).encode())
    for tensor in tensors:
        seen.update(tensor.detach().cpu().numpy().tobytes())
    return seen.hexdigest()[:12]


def furthest(rows: Sequence[Row], aim: float) -> float:
    """How far the fraction kept is from what was aimed at, where it is furthest."""
    return max(abs(row["kept"] - aim) for row in rows)


def apart(rows: Sequence[Row], others: Sequence[Row], field: str, form: str) -> str:
    """Mean difference from the same clips or episodes of another policy, and half its 95% interval."""
    pairs = zip(rows, others, strict=True)
    mean, half = mean_interval([float(row[field]) - float(other[field]) for row, other in pairs])
    return f"{mean:+{form}} ± {half:{form}}"


def fit(model: nn.Module, loss_at: Callable[[int], Tensor], updates: int, checkpoint: Path, rate: float = 1e-3) -> None:
    """AdamW under a cosine schedule with warm-up. Does nothing more where the checkpoint has all updates.

    Args:
        loss_at: the loss at an update, counted from 0. What it draws must depend on the update only, so that a run
            that was killed goes on as it would have gone.
        checkpoint: of model, optimiser and update; written every `SAVE_EVERY` updates.

    Raises:
        ValueError: if the checkpoint is of a run with another number of updates.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["updates"] != updates:
            raise ValueError(f"{checkpoint} is of a run of {state['updates']} updates, not {updates}: delete it")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["update"]
    model.train()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("loss {task.fields[loss]:.3f}"), *columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=updates, completed=start, loss=math.nan)
        mean = math.nan
        for update in range(start, updates):
            now = min(1.0, (update + 1) / 100) * (0.05 + 0.95 * (1 + math.cos(math.pi * update / updates)) / 2)
            for group in optimiser.param_groups:
                group["lr"] = rate * now
            torch.manual_seed(update)
            loss = loss_at(update)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
            progress.update(bar, completed=update + 1, loss=mean)
            if (update + 1) % SAVE_EVERY == 0 or update + 1 == updates:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                part = checkpoint.with_suffix(".part")
                torch.save(state | {"update": update + 1, "updates": updates}, part)
                os.replace(part, checkpoint)
    model.eval()
