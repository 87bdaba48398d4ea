"""Descent on a model's adapters, which goes on where it was saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from namm.learning.tuning.config import TuneConfig
from namm.support.files import load_saved, save_atomically


class Descent:
    """AdamW under a learning rate that rises in the first tenth of the steps and falls in a cosine.

    Attributes:
        done: steps.
        losses: of each, nats a token.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: TuneConfig, checkpoint: Path) -> None:
        self.settings, self.checkpoint, self.parameters = settings, checkpoint, dict(parameters)
        self.losses: list[float] = []
        self._optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=settings.learning_rate, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._share)
        if checkpoint.exists():
            state = load_saved(checkpoint)
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(state["parameters"][name])
            self.losses = list(state["losses"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])

    @property
    def done(self) -> int:
        return len(self.losses)

    def step(self, loss: float) -> None:
        """Descend along the gradients that are there, their norm clipped, and save every so often.

        Raises:
            ValueError: if the loss or a gradient is not finite; what was learned before is as it was.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip))
        for name, found in (("loss", loss), ("norm of the gradients", norm)):
            if not math.isfinite(found):
                raise ValueError(
                    f"the {name} became {found} at step {self.done}: try a smaller learning rate, or another dtype"
                )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.losses.append(loss)
        if self.done % self.settings.save_every == 0 or self.done == self.settings.steps:
            self._save()

    def _share(self, step: int) -> float:
        """Of the learning rate, at a step."""
        warm = max(1, self.settings.steps // 10)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.settings.steps - warm)))

    def _save(self) -> None:
        state = {
            "parameters": {name: own.detach().cpu() for name, own in self.parameters.items()},
            "losses": self.losses,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        save_atomically(state, self.checkpoint)
