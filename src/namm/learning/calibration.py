"""Score offsets for wished fractions: what a learned memory keeps is a matter of its threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.learning.passages import Passage
from namm.memory import NAMM
from namm.policies import NAMMPolicy
from namm.support.runs import Progress

FRACTIONS = (0.125, 0.25, 0.5)
SHORTEST = 512  # tokens at which offsets are measured first, or the nearest whole number of update intervals
ROUNDS = 12  # of measuring and correcting, at most, for each fraction and length
CLOSE = 0.005  # a miss (of the fraction kept) that needs no further round
TOLERANCE = 0.02  # a miss that needs no warning
STEP = 4.0  # offset for one more of the fraction, of the order seen


@dataclass(frozen=True)
class Point:
    """One measured offset: what was aimed at, at how many tokens, the offset, and the fraction that was kept."""

    aim: float
    tokens: int
    offset: float
    kept: float

    @property
    def miss(self) -> float:
        return abs(self.kept - self.aim)


@dataclass(frozen=True)
class Calibration:
    """A memory with its offsets, and what each of them was measured to keep."""

    memory: NAMM
    points: tuple[Point, ...]

    @property
    def missed(self) -> list[Point]:
        """Where the aim was missed by more than `TOLERANCE`."""
        return [point for point in self.points if not point.miss <= TOLERANCE]

    def card(self, title: str, origin: str) -> str:
        """A model card that says what was kept where a fraction was aimed at."""
        lengths = sorted({point.tokens for point in self.points})
        rows = "\n".join(
            f"| {aim} | " + " | ".join(f"{point.kept:.3f}" for point in self._curve(aim)) + " |"
            for aim in sorted({point.aim for point in self.points})
        )
        return f"""# {title}

{origin}

Fraction of the calibration passages that was kept, by the fraction aimed at and the tokens read. Unless its user names
another, the memory aims at {self.memory.config.kept}.

| aim | {" | ".join(map(str, lengths))} |
| --- |{" --- |" * len(lengths)}
{rows}
"""

    def _curve(self, aim: float) -> list[Point]:
        return sorted((point for point in self.points if point.aim == aim), key=lambda point: point.tokens)


@torch.inference_mode()
def kept_fraction(model: PreTrainedModel, policy: NAMMPolicy, passages: Sequence[Passage], tokens: int) -> float:
    """Mean fraction that is kept of the first `tokens` tokens of all passages that have so many, all decided on."""
    found = []
    for ids in (passage.ids[:, :tokens] for passage in passages if passage.ids.shape[1] >= tokens):
        cache = MemoryCache(model, policy)
        model(ids.to(model.device), past_key_values=cache, logits_to_keep=1)
        cache.settle()
        found.append(cache.stats().kept_fraction)
    return sum(found) / len(found)


def lengths(tokens: int, interval: int) -> list[int]:
    """About 512 tokens and its doublings up to a number of tokens, or that number where it is smaller.

    All are whole numbers of update intervals, so that every token is decided on, unless not even one fits.

    >>> lengths(4096, 256), lengths(1000, 96), lengths(100, 96), lengths(50, 96)
    ([512, 1024, 2048, 4096], [480, 960], [96], [50])
    """
    first = max(1, round(SHORTEST / interval)) * interval
    if tokens < first:
        return [tokens // interval * interval or tokens]
    found = [first]
    while found[-1] * 2 <= tokens:
        found.append(found[-1] * 2)
    return found


def calibrate(
    model: PreTrainedModel,
    memory: NAMM,
    passages: Sequence[Passage],
    kept: float,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Calibration:
    """Offsets for several fractions and lengths, for a memory that aims at the fraction `kept` by itself.

    What is kept of so many tokens follows from the offsets up to there, so they are found length by length. Where one
    of them misses its aim by more than `TOLERANCE`, a warning says so.

    Args:
        progress: called after each measurement.
    """
    outside = () if FRACTIONS[0] <= kept <= FRACTIONS[-1] else (kept,)
    fractions = sorted((*FRACTIONS, *outside), reverse=True)
    every = lengths(max(passage.ids.shape[1] for passage in passages), memory.config.update_interval)
    points: list[Point] = []

    def measure(before: Sequence[Point], aim: float, tokens: int, offset: float) -> Point:
        triples = [(aim, point.tokens, point.offset) for point in before] + [(aim, tokens, offset)]
        trial = replace(memory, config=replace(memory.config, calibration=tuple(triples), kept=None))
        found = kept_fraction(model, NAMMPolicy(trial, kept=aim), passages, tokens)
        note = f"{found:.3f} of {tokens} tokens, {aim} wanted"
        progress(Progress("calibrating", len(points) + len(before), len(fractions) * len(every), note))
        return Point(aim, tokens, offset, found)

    for fraction in fractions:
        larger = {point.tokens: point.offset for point in points[-len(every) :]}
        curve: list[Point] = []
        for tokens in every:  # begins where it would lie if the curve were that of the larger fraction, moved
            moved = curve[-1].offset - larger.get(curve[-1].tokens, 0.0) if curve else 0.0
            start = larger.get(tokens, 0.0) + moved
            curve.append(find_offset(partial(measure, curve, fraction, tokens), fraction, start))
        points += curve
    worst = max(point.miss for point in points)
    progress(Progress("calibrating", len(points), len(points), f"within {worst:.3f} of what was wanted"))
    triples = tuple((point.aim, point.tokens, point.offset) for point in points)
    made = Calibration(replace(memory, config=replace(memory.config, calibration=triples, kept=kept)), tuple(points))
    if made.missed:
        said = ", ".join(f"{point.kept:.3f} for {point.aim} at {point.tokens} tokens" for point in made.missed)
        warnings.warn(f"calibration missed its aim by more than {TOLERANCE}: kept {said}", stacklevel=2)
    return made


def find_offset(measure: Callable[[float], Point], aim: float, start: float) -> Point:
    """The measured point nearest to the aim, for what is kept rises with the offset.

    Steps of `STEP` for the whole, twice as long each time, until the aim lies between two points; then by the line
    through their logits (the secant method), every fourth time by halves, where the line is no guide.
    """
    points = [measure(start)]
    while min(point.miss for point in points) > CLOSE and len(points) < ROUNDS:
        below = max((p for p in points if p.kept < aim), key=lambda p: p.offset, default=None)
        above = min((p for p in points if p.kept > aim), key=lambda p: p.offset, default=None)
        if below is None or above is None:
            last = points[-1]
            offset = last.offset + STEP * (aim - last.kept) * 2 ** (len(points) - 1)
        else:
            low, wanted, high = (_logit(kept) for kept in (below.kept, aim, above.kept))
            share = 0.5 if len(points) % 4 == 0 else (wanted - low) / (high - low)
            offset = below.offset + share * (above.offset - below.offset)
        points.append(measure(offset))
    return min(points, key=lambda point: point.miss)


def _logit(kept: float) -> float:
    kept = min(max(kept, 1e-3), 1 - 1e-3)
    return math.log(kept / (1 - kept))
