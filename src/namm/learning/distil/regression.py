"""Regression of later influence on features: the network's first weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from namm.learning.descent import Training, draw, padded
from namm.learning.distil.record import Recording
from namm.memory import NAMM, NAMMConfig
from namm.memory.features import within_head
from namm.memory.influence import FLOOR, score_of
from namm.memory.network import initial_parameters


@dataclass(frozen=True)
class TrainConfig:
    """Adam with one learning-rate cycle.

    Attributes:
        steps: of `batch` recordings each.
        learning_rate: its peak.
        clip: gradient norm.
        seed: of everything random.
        power: of the influence whose expectation is learned, see `influence_loss`.
    """

    steps: int = 600
    batch: int = 8
    learning_rate: float = 3e-3
    clip: float = 1.0
    seed: int = 0
    power: float = 0.7

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.learning_rate <= 0 or self.power <= 0:
            raise ValueError(f"steps, batch, learning_rate and power must be positive, got {self}")


def influence_loss(scores: Tensor, influence: Tensor, power: float) -> Tensor:
    """Negative log-likelihood of exponentially distributed ``influence ** power`` with mean ``exp(score)``.

    Its minimum is the log of an *expectation*. Squared error on the logarithm (the limit of small powers) would find
    the expected logarithm, which hardly counts the small chance that a token is needed badly: names and numbers go.
    Large powers keep little else. Measured between: 0.5 and 1 cost about the same in retrieval, 0.5 less in loss.
    """
    target = score_of(influence, power, 0.0)
    return (target - scores).clamp_max(8.0).exp() + scores - target


def train(
    recordings: Sequence[Sequence[Recording]],
    config: NAMMConfig,
    training: TrainConfig,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> NAMM:
    """A memory whose score is the log of the influence it expects of a token.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        recordings: of each model, at least one; the models are drawn from alike, however many they have.
        checkpoint: where to save the state of training every so often, and to resume from.
        progress: called with the steps done and the running loss.

    Raises:
        ValueError: without recordings, or if the loss is not finite.
    """
    recordings = [own for own in recordings if own]
    if not recordings:
        raise ValueError("nothing was recorded to train on: the documents are shorter than one update interval")
    every = [recording for own in recordings for recording in own]
    start = initial_parameters(config.features, config.hidden, torch.Generator().manual_seed(training.seed))
    memory = NAMM(config, start, *_statistics(every, config))
    typical = torch.stack([recording.influence.float().mean() for recording in every]).mean()
    memory.flat[-1] = training.power * typical.add(FLOOR).log()
    ordered = [sorted(own, key=lambda recording: len(recording.ages)) for own in recordings]
    state = Training(memory.flat, training.learning_rate, training.steps, checkpoint)
    for step in state.left():
        rng = random.Random(f"{training.seed} {step}")
        batch = draw(rng.choice(ordered), training.batch, rng)
        loss = _batch_loss(memory, state.flat, batch, training.power)
        progress(step + 1, state.step(loss, training.clip))
    return replace(memory, config=replace(config, influence=(training.power, 0.0)), flat=state.flat.detach())


def _batch_loss(memory: NAMM, flat: Tensor, batch: Sequence[Recording], power: float) -> Tensor:
    """Mean over recordings of the mean over tokens."""
    features = padded([memory.features(recording.observed.float(), recording.ages) for recording in batch])
    influence = padded([recording.influence.float() for recording in batch])
    weight = padded([torch.full((len(recording.ages),), 1 / (len(recording.ages) * len(batch))) for recording in batch])
    scores = replace(memory, flat=flat).scores(features)
    return (influence_loss(scores, influence, power) * weight).sum()


def _statistics(recordings: Sequence[Recording], config: NAMMConfig) -> tuple[Tensor, Tensor]:
    """Mean and variance of what is observed of every seventh token; of its levels, where it is standardised."""
    total = torch.zeros(2, config.observed, dtype=torch.float64)
    count = 0
    for recording in recordings:
        found = recording.observed.float()
        seen = (within_head(found)[1] if config.standardised else found[::7]).double()
        total += torch.stack([seen.sum(0), seen.square().sum(0)])
        count += len(seen)
    mean = total[0] / count
    return mean.float(), (total[1] / count - mean.square()).clamp_min(1e-6).float()


@torch.no_grad()
def centre(memory: NAMM, recordings: Sequence[Recording], kept: float) -> NAMM:
    """The memory with its score shifted so that it would keep about `kept` of the recorded tokens at offset 0."""
    some = recordings[:: max(1, len(recordings) // 300)]
    scores = torch.cat([memory.scores(memory.features(one.observed.float(), one.ages)) for one in some])
    shift = float(scores[:: 1 + len(scores) // 10**7].quantile(1 - kept))  # torch's limit
    flat, config = memory.flat_parameters(), memory.config
    flat[-1] -= shift
    if config.influence is not None:
        config = replace(config, influence=(config.influence[0], config.influence[1] + shift))
    return replace(memory, config=config, flat=flat)
