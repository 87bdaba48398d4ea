"""A memory made better by what its own decisions cost the model: credit from a backward pass, no attention targets.

Rounds of two steps. A memory forgets while passages are read, and `gated` tells for every decision how much smaller
the divergence from the full cache is with the token than without it. Then the network learns to move each score by
what such a token was worth beyond the *price* of a place. The price is the one at which this moves nothing on the
whole: a memory learns what to keep, not how much.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.learning.descent import Training, draw, padded
from namm.learning.passages import Passage
from namm.learning.refine.lessons import Lesson, Reading, examine, make_exam
from namm.memory import NAMM
from namm.memory.network import token_scores, unflatten
from namm.support.files import load_saved, save_atomically

BEYOND = 0.1  # share of verdicts at the bound from which on a price means nothing
HOLD = 10.0  # weight of attention sinks, times that of any other token
SAFE = 4.0  # score that a sink is raised to, more than offsets take away: where one is lost, a document is


@dataclass(frozen=True)
class RefineConfig:
    """How a memory is refined.

    Attributes:
        bounds: for each round of reading and learning the most that a place counts for, in prices. Rare tokens are
            worth most, and noise is as large: with 300 the memory learns to keep what may be asked for, with 100 what
            most of a text needs. Each round has its share of the passages.
        fractions: aimed at while passages are read, anything between these two, so that the memory serves all sizes.
        scored: tokens of a passage whose divergence is looked at.
        recall: weight of the mean divergence on answers and quotations (which most tokens do nothing for) beside that
            of a block of the passage.
        stride: how far a score is moved for one price that a place was worth.
        steps: of Adam in each round.
        batch: heads at one update in each step.
        learning_rate: its peak.
        seed: of everything random.
    """

    bounds: tuple[float, ...] = (300.0, 300.0, 100.0)
    fractions: tuple[float, float] = (0.15, 0.4)
    scored: int = 384
    recall: float = 1.0
    stride: float = 0.4
    steps: int = 800
    batch: int = 12
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.fractions
        if min(len(self.bounds), self.steps, self.scored, self.batch) < 1 or not 0 < low <= high < 1:
            raise ValueError(f"bad settings for refining: {self}")
        if min(self.learning_rate, self.stride, *self.bounds) <= 0 or self.recall < 0:
            raise ValueError(f"bad settings for refining: {self}")

    @property
    def rounds(self) -> int:
        return len(self.bounds)


def price_of(lessons: Sequence[Lesson], bound: float) -> float:
    """The highest price at which the verdicts on tokens near the threshold add up to nothing.

    Raises:
        ValueError: if no price does that, or one so low that many verdicts are beyond the bound: what was kept did more
            harm than good.
    """
    worth = torch.cat([lesson.worth for lesson in lessons])
    near = torch.cat([~lesson.sinks * _learned_from(lesson) / (1 + lesson.scores.square()) for lesson in lessons])
    if not torch.isfinite(worth).all():
        raise ValueError("what decisions were worth is NaN or infinite: try another dtype")

    def surplus(logarithm: float) -> float:
        return float((near * _verdict(worth, math.exp(logarithm), bound)).sum())

    low = next((step / 4 for step in range(20, -121, -1) if surplus(step / 4) > 0), None)
    if low is not None:
        high = low + 0.25
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
        price = math.exp(low)
        if float(near[(worth / price - 1).abs() >= bound].sum()) < BEYOND * float(near.sum()):
            return price
    raise ValueError("the tokens near the threshold were worth nothing: refine on more passages, or in float32")


def _moves(lesson: Lesson, price: float, bound: float, stride: float) -> Tensor:
    """``[tokens]``, how far scores are to move: sinks up to `SAFE`, others by what their place was worth."""
    lift = (SAFE - lesson.scores).clamp_min(0)
    return torch.where(lesson.sinks, lift, stride * _verdict(lesson.worth, price, bound))


def _learned_from(lesson: Lesson) -> Tensor:
    """``[tokens]`` bool: all but the newest, on which nothing is decided."""
    counts = torch.ones_like(lesson.sinks)
    counts[-1] = False
    return counts


def _verdict(worth: Tensor, price: float, bound: float) -> Tensor:
    """Prices that a place was worth beyond its own."""
    return (worth / price - 1).clamp(-bound, bound)


def learn(
    memory: NAMM,
    lessons: Sequence[Lesson],
    settings: RefineConfig,
    bound: float,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    checkpoint: Path | None = None,
) -> NAMM:
    """The memory with its scores moved by ``stride * E[verdict | features]``: least squares on single verdicts."""
    config, price = memory.config, price_of(lessons, bound)
    ordered = sorted(lessons, key=lambda lesson: len(lesson.scores))
    start = unflatten(memory.flat, config.features, config.hidden)
    training = Training(memory.flat, settings.learning_rate, settings.steps, checkpoint)
    for step in training.left():
        batch = draw(ordered, settings.batch, random.Random(f"{settings.seed} learn {step}"))
        features = padded([lesson.features.float() for lesson in batch])
        moves = padded([_moves(lesson, price, bound, settings.stride) for lesson in batch])
        weight = padded(
            [
                torch.where(lesson.sinks, HOLD, 1.0) * _learned_from(lesson) / (len(batch) * len(lesson.scores))
                for lesson in batch
            ]
        )
        moved = token_scores(features, unflatten(training.flat, config.features, config.hidden), config.heads)
        with torch.no_grad():
            wanted = token_scores(features, start, config.heads) + moves
        progress(step + 1, training.step(((moved - wanted).square() * weight).sum(), clip=10.0))
    return replace(memory, flat=training.flat.detach())


def in_turn(passages: int, rounds: int) -> list[int]:
    """For each passage the round that reads it, one after the other.

    Raises:
        ValueError: if there are fewer passages than rounds.
    """
    if passages < rounds:
        raise ValueError(f"{passages} passages are not enough for {rounds} rounds")
    return [index % rounds for index in range(passages)]


def refine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    passages: Sequence[Passage],
    settings: RefineConfig,
    work: Path,
    *,
    turns: Sequence[int] | None = None,
    reading: Callable[[int, Reading], None] = lambda done, found: None,
    learning: Callable[[int, int, float], None] = lambda round, step, loss: None,
) -> NAMM:
    """The memory after some rounds; its calibration has to be made anew.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        memory: calibrated, see `calibrate`.
        passages: each of whole update intervals, at least three; every round reads its own.
        turns: for each passage the round that reads it, from 0, every round at least one; None: see `in_turn`.
        work: a folder for what was found; a run that finds its own files there goes on from them.
        reading: called after each passage with their number. learning: with round, steps and loss.

    Raises:
        ValueError: if a round has no passage, or a passage is too short.
    """
    turns = in_turn(len(passages), settings.rounds) if turns is None else turns
    if set(turns) != set(range(settings.rounds)):
        raise ValueError(f"each of {settings.rounds} rounds needs a passage, not only {sorted(set(turns))}")
    if any(passage.ids.shape[1] < 3 * memory.config.update_interval for passage in passages):
        raise ValueError(f"a passage needs three update intervals of {memory.config.update_interval} tokens")
    model.requires_grad_(False)
    work.mkdir(parents=True, exist_ok=True)
    low, high = (math.log(fraction) for fraction in settings.fractions)
    read = 0
    for turn in range(settings.rounds):
        lessons: list[Lesson] = []
        for index in (index for index, reader in enumerate(turns) if reader == turn):
            file = work / f"lessons-{index:04d}.pt"
            if not file.exists():
                rng = random.Random(f"{settings.seed} read {index}")
                exam = make_exam(passages[index], tokenizer, rng)
                fraction = math.exp(rng.uniform(low, high))
                found, seen = examine(
                    model, memory, exam, fraction, scored=settings.scored, recall=settings.recall, rng=rng
                )
                save_atomically({"lessons": [asdict(lesson) for lesson in found], "reading": asdict(seen)}, file)
            stored = load_saved(file)
            lessons += [Lesson(**lesson) for lesson in stored["lessons"]]
            read += 1
            reading(read, Reading(**stored["reading"]))

        def report(step: int, loss: float, turn: int = turn) -> None:
            learning(turn, step, loss)

        memory = learn(memory, lessons, settings, settings.bounds[turn], report, work / f"round-{turn}.ckpt")
    return memory
