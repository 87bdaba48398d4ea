"""Score offsets for wished fractions: what a learned memory keeps is a matter of its threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.memory import NAMM
from namm.policies import NAMMPolicy

FRACTIONS = (0.125, 0.25, 0.5)
ROUNDS = 4
STEP = 1.5  # offset for one more of the fraction: of the order seen, and small enough not to swing


@dataclass(frozen=True)
class Passage:
    """A piece of a document, ``ids`` ``[1, tokens]``."""

    name: str
    ids: Tensor


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


def centre(model: PreTrainedModel, memory: NAMM, passages: Sequence[Passage], kept: float) -> NAMM:
    """The memory with its score shifted so that it keeps about `kept` of the passages at offset 0."""
    low, high = -12.0, 12.0
    for _ in range(8):
        middle = (low + high) / 2
        fractions = kept_fractions(model, NAMMPolicy(memory, offset=middle), passages)
        low, high = (middle, high) if fractions[max(fractions)] < kept else (low, middle)
    flat = memory.flat_parameters()
    flat[-1] += (low + high) / 2
    return replace(memory, flat=flat)


def calibrate(
    model: PreTrainedModel,
    memory: NAMM,
    passages: Sequence[Passage],
    kept: float,
    progress: Callable[[float, dict[int, float]], None] = lambda wanted, found: None,
) -> NAMM:
    """The memory with offsets for several fractions and lengths, and `kept` as the fraction it aims at by itself.

    For each fraction an offset at every length is corrected, round after round, by what was kept there too little.

    Args:
        progress: called after each round with the fraction wanted and those found.
    """
    triples: list[tuple[float, int, float]] = []
    outside = () if FRACTIONS[0] <= kept <= FRACTIONS[-1] else (kept,)
    for fraction in sorted((*FRACTIONS, *outside)):
        offsets = dict.fromkeys(lengths(max(passage.ids.shape[1] for passage in passages)), 0.0)
        for _ in range(ROUNDS):
            curve = tuple((fraction, length, offset) for length, offset in offsets.items())
            trial = replace(memory, config=replace(memory.config, calibration=curve))
            found = kept_fractions(model, NAMMPolicy(trial, kept=fraction), passages)
            progress(fraction, found)
            offsets = {length: offset + STEP * (fraction - found[length]) for length, offset in offsets.items()}
        triples += [(fraction, length, offset) for length, offset in offsets.items()]
    return replace(memory, config=replace(memory.config, calibration=tuple(triples), kept=kept))
