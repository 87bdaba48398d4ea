"""Few, strong directions: what a search moves where thousands of parameters would be too many for its candidates.

A memory sees no layer and no model, so there is no direction that moves a threshold by depth: heads differ by their
levels, among the features, whose gains are directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.evolution.reading import SharedReading
from namm.evolution.space import Space
from namm.memory import NAMM, NAMMConfig
from namm.memory.birth import BIRTH_FEATURES
from namm.memory.key_value import KEY_VALUE_FEATURES
from namm.memory.network import unflatten
from namm.memory.spectrogram import AGE_FEATURES
from namm.policies import NAMMPolicy
from namm.policies.head import Head
from namm.tasks import Sample

RANK = 6  # singular vectors of each matrix
STEP = 0.05  # of a direction, on both sides, by which its effect is measured
WEAK = 0.02  # of the spread of the scores: a direction that moves them by less is left out
HEADS = 16  # of a model, that are recorded
BLOCKS = {"attention.qkv.weight": 3, "attention.output.weight": 2}  # of columns, each a matrix of its own


def directions(start: NAMM, towards: NAMM | None = None) -> Tensor:
    """Vectors ``[directions, parameters]`` along which the start is moved, each as large as what it moves.

    For every group of features its weights in the score and in the queries, keys and values; the biases; and of every
    matrix of the backward attention the leading singular parts. With another memory, biases and singular parts are
    those of the way to it, and so is one more direction, the score's.

    Raises:
        ValueError: if the other memory has another configuration.
    """
    moved = _parts(start, start.flat) if towards is None else _moved(start, towards)
    own = _parts(start, start.flat)
    found = []
    for group in feature_groups(start.config):
        for name in ("score.weight", "attention.qkv.weight"):
            gained = torch.zeros_like(own[name])
            gained[group] = own[name][group]
            found.append(_only(start, name, gained))
    whole = ["attention.qkv.bias", "attention.output.bias"]
    whole += [] if start.config.kept else ["score.bias"]  # changes nothing where a fraction is kept
    whole += [] if towards is None else ["score.weight"]
    found += [_only(start, name, moved[name]) for name in whole]
    for name, blocks in BLOCKS.items():
        for block in range(blocks):
            found += [_only(start, name, part) for part in _singular_parts(moved[name], block, blocks)]
    return torch.stack(found)


def way(start: NAMM, towards: NAMM) -> Space:
    """The way to another memory, by its parts: biases, the score, and each block of each matrix.

    A move of 1 in all of them is the other memory, but for the bias of the score, which changes nothing where a
    fraction is kept.

    Raises:
        ValueError: if it has another configuration, or is the start.
    """
    moved = _moved(start, towards)
    whole = ["attention.qkv.bias", "attention.output.bias", "score.weight"]
    whole += [] if start.config.kept else ["score.bias"]
    found = [_only(start, name, moved[name]) for name in whole]
    for name, blocks in BLOCKS.items():
        for block in range(blocks):
            part = torch.zeros_like(moved[name])
            own = _block(moved[name], block, blocks)
            part[:, own] = moved[name][:, own]
            found.append(_only(start, name, part))
    basis = torch.stack([part for part in found if part.any()] or [torch.zeros_like(start.flat)])
    if not basis.any():
        raise ValueError("the memory in `towards` is the start: there is no way to it")
    return Space(len(basis), lambda moves: start.flat + torch.as_tensor(moves, dtype=torch.float32) @ basis)


def feature_groups(config: NAMMConfig) -> list[slice]:
    """Features that tell of one thing: age, spectrogram, birth row, key and value, then the head's levels of these."""
    spectrogram = len(config.ema) * config.spectrogram.channels
    observed = [spectrogram, BIRTH_FEATURES * config.birth, KEY_VALUE_FEATURES * config.key_value]
    sizes = [size for size in (AGE_FEATURES, *observed, *(observed if config.standardised else ())) if size]
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


def spreads(start: NAMM, along: Tensor, heads: Sequence[Tensor]) -> list[float]:
    """How much scores change along each direction, over the standard deviation of the scores themselves.

    Args:
        along: ``[directions, parameters]``.
        heads: recorded features, ``[tokens, features]`` each. Where a fraction is kept, a change that is the same for
            all tokens of all heads is none.

    Raises:
        ValueError: if the start scores all tokens alike.
    """
    lengths, features = [len(own) for own in heads], torch.cat(list(heads))

    def scores(flat: Tensor) -> Tensor:
        return replace(start, flat=flat).scores(features, lengths).double()

    scale = float(scores(start.flat).std())
    if not scale > 0:
        raise ValueError("the start scores all tokens alike, so no direction can be measured: choose another space")
    found = []
    for way in along:
        change = (scores(start.flat + STEP * way) - scores(start.flat - STEP * way)) / (2 * STEP)
        size = change.std() if start.config.kept else change.square().mean().sqrt()
        found.append(float(size) / scale)
    return found


def along(start: NAMM, ways: Tensor, sizes: Sequence[float]) -> Space:
    """The space of those directions that move scores at all, each so that a move of 1 changes them by their spread.

    Args:
        ways: see `directions`. sizes: see `spreads`.
    """
    strong = [number for number, size in enumerate(sizes) if size >= WEAK]
    if not strong:
        raise ValueError("no direction changes the start's scores: choose another space")
    basis = ways[strong] / torch.tensor(sizes)[strong, None]
    return Space(len(strong), lambda moves: start.flat + torch.as_tensor(moves, dtype=torch.float32) @ basis)


def recorded_heads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: NAMM, sample: Sample, kept: float | None
) -> list[Tensor]:
    """Features ``[tokens, features]`` of some heads of all layers, as a memory sees them after a sample's context."""
    policy = _Recorder(memory, kept=kept)
    SharedReading.of(model, sample.token_ids(tokenizer)[0][0], memory, kept).under(policy)
    return policy.recorded


@dataclass
class _Recorder(NAMMPolicy):
    recorded: list[Tensor] = field(default_factory=list)

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        if heads[0].whole and not self.recorded:
            self.recorded = [self.features(head).cpu() for head in heads[:: max(1, len(heads) // HEADS)]]
        return super().select(heads)


def _parts(memory: NAMM, flat: Tensor) -> dict[str, Tensor]:
    return unflatten(flat, memory.config.features, memory.config.hidden)


def _moved(start: NAMM, towards: NAMM) -> dict[str, Tensor]:
    if towards.config != start.config:
        raise ValueError("the memory in `towards` has another configuration than the start: no way leads there")
    return _parts(start, towards.flat - start.flat)


def _block(matrix: Tensor, block: int, blocks: int) -> slice:
    """Its columns."""
    width = matrix.shape[1] // blocks
    return slice(block * width, (block + 1) * width)


def _only(memory: NAMM, name: str, part: Tensor) -> Tensor:
    """A vector ``[parameters]`` that is zero but for one part."""
    flat = torch.zeros_like(memory.flat)
    _parts(memory, flat)[name].copy_(part)  # a view
    return flat


def _singular_parts(matrix: Tensor, block: int, blocks: int) -> list[Tensor]:
    """The leading singular parts of one block of columns, each as a matrix of the whole's shape."""
    own = _block(matrix, block, blocks)
    left, values, right = torch.linalg.svd(matrix[:, own].double(), full_matrices=False)
    found = []
    for rank in range(min(RANK, len(values))):
        part = torch.zeros_like(matrix)
        part[:, own] = (values[rank] * torch.outer(left[:, rank], right[rank])).float()
        found.append(part)
    return found
