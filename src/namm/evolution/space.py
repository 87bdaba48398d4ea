"""Where a search begins, and which parameters evolve: from the numbers a strategy moves to a memory's flat vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from namm.memory import NAMM, NAMMConfig
from namm.memory.config import UNIVERSAL
from namm.memory.network import unflatten

SCRATCH = "scratch"
"""A network before any learning, with log features and two averages, that keeps what it scores at least 0."""
SCRATCH_RANKING = "scratch-ranking"
"""A network before any learning that sees what `universal` sees, and whose scores rank tokens for a given budget."""
STARTS = {
    SCRATCH: NAMMConfig(update_interval=256, ema=(0.99, 0.999), compression="log", state_dtype="bfloat16"),
    SCRATCH_RANKING: replace(UNIVERSAL, kept=0.25),
}


def starting_memory(name: str) -> NAMM:
    """One of `STARTS`, else the memory by its name."""
    return NAMM(STARTS[name]) if name in STARTS else NAMM.from_pretrained(name)


@dataclass(frozen=True)
class Space:
    """A search space around a start, where the start is the zero vector.

    Attributes:
        dimensions: of the vectors that a strategy moves.
        flat: ``[population, dimensions]`` float64 to ``[population, parameters]`` float32.
    """

    dimensions: int
    flat: Callable[[np.ndarray], Tensor]


def _all(start: NAMM) -> Space:
    """Every parameter, moved by what is added to it."""
    flat = start.flat_parameters()
    return Space(len(flat), lambda moves: flat + torch.as_tensor(moves, dtype=torch.float32))


def _scorer(start: NAMM) -> Space:
    """Weights and bias of the linear score."""
    flat = start.flat_parameters()
    count = start.config.features + 1

    def expand(moves: np.ndarray) -> Tensor:
        moved = flat.repeat(len(moves), 1)
        moved[:, -count:] += torch.as_tensor(moves, dtype=torch.float32)
        return moved

    return Space(count, expand)


def _gains(start: NAMM) -> Space:
    """A gain of every feature as attention and score see it, exp(move), and the bias of the score."""
    flat, config = start.flat_parameters(), start.config

    def expand(moves: np.ndarray) -> Tensor:
        moved = flat.repeat(len(moves), 1)
        steps = torch.as_tensor(moves, dtype=torch.float32)
        parts = unflatten(moved, config.features, config.hidden)
        gains = steps[:, :-1, None].exp()
        for name in ("attention.qkv.weight", "score.weight"):
            parts[name].mul_(gains)  # parts are views of `moved`
        parts["score.bias"].add_(steps[:, -1:])
        return moved

    return Space(config.features + 1, expand)


SPACES: dict[str, Callable[[NAMM], Space]] = {"all": _all, "scorer": _scorer, "gains": _gains}
DIRECTIONS = "directions"
"""One more space, which is measured on recorded features, see `namm.evolution.directions`."""
WAY = "way"
"""One more space, the way to another memory by its parts."""
