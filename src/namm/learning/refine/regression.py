"""Regression of moved scores on features: one step of a memory towards what its own decisions would have saved.

A token's gain is weighed against a Lagrange multiplier, that of keeping as many tokens as before: at the multiplier
found here the moves of all tokens near the threshold add up to nothing, so that a memory learns what to keep, not how
much.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from namm.learning.descent import Training, draw, padded
from namm.learning.refine.probe import Example
from namm.memory import NAMM

MOST_CLIPPED = 0.1  # share of advantages at the bound from which on a multiplier means nothing
SINK_WEIGHT = 10.0  # of attention sinks, times that of any other token
SINK_SCORE = 4.0  # that a sink is raised to, more than offsets take away: where one is lost, a document is


@dataclass(frozen=True)
class RefineConfig:
    """How a memory is refined.

    Attributes:
        bounds: for each round the bound of advantages (see `advantage`). Rare tokens have the largest gains, and noise
            is as large: with 300 the memory learns to keep what may be asked for, with 100 what most of a text needs.
            Each round has its share of the passages; one that reads few of them moves a memory by noise.
        fractions: kept while passages are read, anything between these two, so that the memory serves all sizes.
        scored: tokens of a passage whose divergence is looked at.
        recall: weight of the mean divergence on answers and quotations (which most tokens do nothing for) beside that
            of a block of the passage.
        stride: how far a score is moved for an advantage of 1.
        steps: of Adam in each round.
        batch: examples of a step.
        learning_rate: its peak.
        seed: of everything random.
    """

    bounds: tuple[float, ...] = (300.0,)
    fractions: tuple[float, float] = (0.15, 0.4)
    scored: int = 384
    recall: float = 1.0
    stride: float = 0.2
    steps: int = 800
    batch: int = 12
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.fractions
        if min(len(self.bounds), self.steps, self.scored, self.batch) < 1 or not 0 < low <= high < 1:
            raise ValueError(f"bad settings for refining: {self}")
        if not all(value > 0 for value in (self.learning_rate, self.stride, *self.bounds)) or not self.recall >= 0:
            raise ValueError(f"bad settings for refining: {self}")

    @property
    def rounds(self) -> int:
        return len(self.bounds)


def advantage(gain: Tensor, multiplier: float, bound: float) -> Tensor:
    """Of a token over what its place would save elsewhere: ``gain / multiplier - 1``, within ``-bound`` and `bound`."""
    return (gain / multiplier - 1).clamp(-bound, bound)


def find_multiplier(examples: Sequence[Example], bound: float) -> float:
    """The highest Lagrange multiplier at which the advantages of tokens near the threshold add up to nothing.

    Raises:
        ValueError: if a gain is not finite, if no multiplier does that, or one so low that many advantages are at the
            bound: what was kept did more harm than good.
    """
    gain = torch.cat([example.gain for example in examples])
    near = torch.cat([~example.sinks * _decided(example) / (1 + example.scores.square()) for example in examples])
    if not torch.isfinite(gain).all():
        raise ValueError("the gain of some tokens is NaN or infinite: try another dtype")

    def surplus(logarithm: float) -> float:
        return float((near * advantage(gain, math.exp(logarithm), bound)).sum())

    low = next((step / 4 for step in range(20, -121, -1) if surplus(step / 4) > 0), None)
    if low is not None:
        high = low + 0.25
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
        found = math.exp(low)
        if float(near[(gain / found - 1).abs() >= bound].sum()) < MOST_CLIPPED * float(near.sum()):
            return found
    raise ValueError("the tokens near the threshold gained nothing: refine on more passages, or in float32")


def moves(example: Example, multiplier: float, bound: float, stride: float) -> Tensor:
    """``[tokens]``, how far scores are to move: sinks up to `SINK_SCORE`, others by their advantage."""
    lift = (SINK_SCORE - example.scores).clamp_min(0)
    return torch.where(example.sinks, lift, stride * advantage(example.gain, multiplier, bound))


def weights(example: Example) -> Tensor:
    """``[tokens]``, of the squared errors of an example: their mean over tokens, sinks `SINK_WEIGHT` times."""
    return torch.where(example.sinks, SINK_WEIGHT, 1.0) * _decided(example) / len(example.scores)


def _decided(example: Example) -> Tensor:
    """``[tokens]`` bool: all but the newest, which stays whatever its score."""
    decided = torch.ones_like(example.sinks)
    decided[-1] = False
    return decided


def fit(
    memory: NAMM,
    examples: Sequence[Sequence[Example]],
    settings: RefineConfig,
    bound: float,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    checkpoint: Path | None = None,
) -> NAMM:
    """The memory with its scores moved by ``E[move | features]``: least squares on the moves of single tokens.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        examples: of each model; the models are drawn from alike, each at a multiplier of its own.
        bound: of advantages. progress: called with the steps done and the running loss.
        checkpoint: where to save the state of training every so often, and to resume from.
    """
    ordered = [(sorted(own, key=lambda example: len(example.scores)), find_multiplier(own, bound)) for own in examples]
    training = Training(memory.flat, settings.learning_rate, settings.steps, checkpoint)
    for step in training.left():
        rng = random.Random(f"{settings.seed} fit {step}")
        own, multiplier = rng.choice(ordered)
        batch = draw(own, settings.batch, rng)
        features = padded([memory.features(example.observed.float(), example.ages) for example in batch])
        wanted = padded([moves(example, multiplier, bound, settings.stride) for example in batch])
        weight = padded([weights(example) for example in batch]) / len(batch)
        moved = replace(memory, flat=training.flat).scores(features)
        with torch.no_grad():
            wanted += memory.scores(features)
        progress(step + 1, training.step(((moved - wanted).square() * weight).sum(), clip=10.0))
    return replace(memory, flat=training.flat.detach())
