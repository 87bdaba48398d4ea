"""Gradient descent on one flat vector of parameters, resumable, over samples of differing length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.support.files import load_saved, save_atomically

CHECKPOINT_EVERY = 100
NEIGHBOURS = 200  # a batch is drawn from samples of about one length, so that padding is small

T = TypeVar("T")


class Training:
    """Adam on one vector under a learning-rate cycle; saved every so often, and gone on with where it was saved.

    Attributes:
        flat: ``[parameters]``, what is learned.
        done: steps.
    """

    def __init__(self, start: Tensor, learning_rate: float, steps: int, checkpoint: Path | None) -> None:
        self.flat = start.detach().clone().requires_grad_()
        self.steps, self.done, self.checkpoint, self._running = steps, 0, checkpoint, 0.0
        self._optimizer = torch.optim.Adam([self.flat], lr=learning_rate)
        warm = max(0.1, 2 / (steps + 1))  # at least a step
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, learning_rate, total_steps=steps + 1, pct_start=min(warm, 0.9)
        )
        if checkpoint is not None and checkpoint.exists():
            state = load_saved(checkpoint)
            self.done, self._running = state["step"], state["running"]
            with torch.no_grad():
                self.flat.copy_(state["flat"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])

    def left(self) -> range:
        return range(self.done, self.steps)

    def step(self, loss: Tensor, clip: float) -> float:
        """Descend, with the norm of the gradient clipped.

        Returns:
            The running mean of the loss.

        Raises:
            ValueError: if the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise ValueError(f"the loss became {loss.item()} at step {self.done}; try a smaller learning rate")
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.flat], clip)
        self._optimizer.step()
        self._schedule.step()
        self._running = loss.item() if not self.done else 0.98 * self._running + 0.02 * loss.item()
        self.done += 1
        if self.checkpoint is not None and (self.done % CHECKPOINT_EVERY == 0 or self.done == self.steps):
            state: dict[str, Any] = {"optimizer": self._optimizer.state_dict()}
            state["schedule"] = self._schedule.state_dict()
            state |= {"flat": self.flat.detach(), "step": self.done, "running": self._running}
            save_atomically(state, self.checkpoint)
        return self._running


def draw(ordered: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """A batch of neighbours in a sequence ordered by length."""
    centre = rng.randrange(len(ordered))
    low, high = max(0, centre - NEIGHBOURS), min(len(ordered) - 1, centre + NEIGHBOURS)
    return [ordered[rng.randint(low, high)] for _ in range(count)]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """``[rows, longest, ...]`` with zeros on the side of the older tokens, where no token looks."""
    longest = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, 0) * (row.ndim - 1) + (longest - len(row), 0)) for row in rows])
