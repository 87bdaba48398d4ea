"""Score offsets for wished fractions: what a learned memory keeps is a matter of its threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.learning.distil.record import Sample
from namm.learning.passages import Passage
from namm.memory import NAMM
from namm.policies import NAMMPolicy
from namm.support.runs import Progress

FRACTIONS = (0.125, 0.25, 0.5)
ROUNDS = 3
STEP = 4.0  # offset for one more of the fraction, of the order seen


@torch.inference_mode()
def kept_fractions(model: PreTrainedModel, policy: NAMMPolicy, passages: Sequence[Passage]) -> dict[int, float]:
    """Mean fraction kept at 512, 1,024, 2,048 ... tokens, each over the passages that are as long."""
    found: dict[int, list[float]] = {}
    for passage in passages:
        cache, seen = MemoryCache(model, policy), 0
        for length in lengths(passage.ids.shape[1]):
            model(passage.ids[:, seen:length].to(model.device), past_key_values=cache, logits_to_keep=1)
            found.setdefault(length, []).append(cache.stats().kept_fraction)
            seen = length
    return {length: sum(values) / len(values) for length, values in found.items()}


def lengths(tokens: int) -> list[int]:
    """512 and its doublings up to a number of tokens, or that number where it is smaller."""
    found = [512]
    while found[-1] * 2 <= tokens:
        found.append(found[-1] * 2)
    return found if tokens >= 512 else [tokens]


@torch.no_grad()
def centre(memory: NAMM, samples: Sequence[Sample], kept: float) -> NAMM:
    """The memory with its score shifted so that it would keep about `kept` of the recorded tokens at offset 0."""
    some = samples[:: max(1, len(samples) // 300)]
    scores = torch.cat([memory.scores(memory.features(sample.spectrogram, sample.ages)) for sample in some])
    flat = memory.flat_parameters()
    flat[-1] -= scores[:: 1 + len(scores) // 10**7].quantile(1 - kept)  # torch's limit
    return replace(memory, flat=flat)


def calibrate(
    model: PreTrainedModel,
    memory: NAMM,
    passages: Sequence[Passage],
    kept: float,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> NAMM:
    """The memory with offsets for several fractions and lengths, and `kept` as the fraction it aims at by itself.

    For each fraction the offset at every length is corrected, round after round, by what was kept there too little:
    by a step of `STEP` for the whole, then by the slope that the last two rounds showed (the secant method).

    Args:
        progress: called after each round with the rounds done, all rounds, and what was found.
    """
    triples: list[tuple[float, int, float]] = []
    outside = () if FRACTIONS[0] <= kept <= FRACTIONS[-1] else (kept,)
    fractions = sorted((*FRACTIONS, *outside), reverse=True)
    offsets = dict.fromkeys(lengths(max(passage.ids.shape[1] for passage in passages)), 0.0)
    for number, fraction in enumerate(fractions):  # each begins where the one before ended
        steps = dict.fromkeys(offsets, STEP)
        last: dict[int, tuple[float, float]] = {}
        for turn in range(ROUNDS):
            curve = tuple((fraction, length, offset) for length, offset in offsets.items())
            trial = replace(memory, config=replace(memory.config, calibration=curve))
            found = kept_fractions(model, NAMMPolicy(trial, kept=fraction), passages)
            for length, (offset, before) in last.items():
                if abs(found[length] - before) > 0.005:
                    slope = (offsets[length] - offset) / (found[length] - before)
                    steps[length] = min(max(slope, STEP / 3), STEP * 3)
            last = {length: (offset, found[length]) for length, offset in offsets.items()}
            note = ", ".join(f"{value:.3f} at {length}" for length, value in found.items())
            progress(number * ROUNDS + turn + 1, len(fractions) * ROUNDS, f"{fraction} wanted: {note}")
            offsets = {n: offset + steps[n] * (fraction - found[n]) for n, offset in offsets.items()}
        triples += [(fraction, length, offset) for length, offset in offsets.items()]
    return replace(memory, config=replace(memory.config, calibration=tuple(triples), kept=kept))


def calibrate_on_longest(
    model: PreTrainedModel,
    memory: NAMM,
    passages: Sequence[Passage],
    count: int,
    kept: float,
    progress: Callable[[Progress], None],
) -> NAMM:
    longest = sorted(passages, key=lambda passage: passage.ids.shape[1])[-count:]
    return calibrate(
        model, memory, longest, kept, lambda done, total, note: progress(Progress("calibrating", done, total, note))
    )
