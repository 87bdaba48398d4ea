"""The scoring network: backward attention memory (BAM) and a linear head, as functions of one flat vector.

Evolution sees a network as a vector of numbers, so the vector is the network here: `unflatten` names its parts
without copying. Any leading dimensions of the vector are a batch of networks.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.support.tensors import band, steps

QUERY_TILE = 256
REACH_TILE = 64  # queries of a tile where reach is bounded: it looks at so many tokens more than each of them
TILES = 256  # of these that are looked at at once


def parameter_shapes(features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parts of the flat vector, in its order; weights are ``[in, out]``, ``y = x W + b``."""
    return {
        "attention.qkv.weight": (features, 3 * hidden),
        "attention.qkv.bias": (3 * hidden,),
        "attention.output.weight": (hidden, 2 * features),
        "attention.output.bias": (2 * features,),
        "score.weight": (features, 1),
        "score.bias": (1,),
    }


def parameter_count(features: int, hidden: int) -> int:
    """Length of the flat vector."""
    return sum(math.prod(shape) for shape in parameter_shapes(features, hidden).values())


def unflatten(flat: Tensor, features: int, hidden: int) -> dict[str, Tensor]:
    """Views of a flat vector ``[..., parameters]`` under their names.

    Raises:
        ValueError: if the vector has another length than the configuration asks for.
    """
    shapes = parameter_shapes(features, hidden)
    expected = parameter_count(features, hidden)
    if flat.shape[-1] != expected:
        raise ValueError(
            f"{flat.shape[-1]} parameters given, but {features} features and hidden width {hidden} need {expected}"
        )
    parts = flat.split([math.prod(shape) for shape in shapes.values()], dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def initial_parameters(features: int, hidden: int, generator: torch.Generator | None = None) -> Tensor:
    """A start for learning, ``[parameters]`` float32: scaled normal weights, zero biases and no modulation."""
    parts = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[0]) if len(shape) == 2 else torch.zeros(shape)
        for name, shape in parameter_shapes(features, hidden).items()
    }
    parts["attention.output.weight"] *= 0.1
    return torch.cat([part.flatten() for part in parts.values()])


def backward_attention(
    query: Tensor, key: Tensor, value: Tensor, reach: int | None = None, lengths: Sequence[int] | None = None
) -> Tensor:
    """Counter-causal attention: a token looks at itself and at *newer* tokens of its head.

    Tiles of queries look only at the keys that one of them may look at, and no ``[n, n]`` matrix is ever held.

    Args:
        query, key, value: ``[..., tokens, width]``, oldest token first.
        reach: newer tokens that a token looks at, at most; None: all, which takes time quadratic in the tokens.
        lengths: of heads whose tokens come one head behind the other; None: all are one head's.

    Returns:
        ``[..., tokens, width]``.
    """
    lengths = [query.shape[-2]] if lengths is None else lengths
    query = query * query.shape[-1] ** -0.5
    if reach is not None:
        return _within_reach(query, key, value, reach, lengths)
    heads = zip(*(part.split(lengths, dim=-2) for part in (query, key, value)), strict=True)
    return torch.cat([_to_the_end(*own) for own in heads], dim=-2)


def _to_the_end(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Backward attention of one head to all newer tokens."""
    outputs = []
    for start in range(0, query.shape[-2], QUERY_TILE):
        logits = query[..., start : start + QUERY_TILE, :] @ key[..., start:, :].transpose(-1, -2)
        rows = logits.shape[-2]
        logits[..., :rows].masked_fill_(band(rows, rows, 0, rows, query.device), -math.inf)
        outputs.append(logits.softmax(-1) @ value[..., start:, :])
    return torch.cat(outputs, dim=-2) if len(outputs) != 1 else outputs[0]


def _within_reach(query: Tensor, key: Tensor, value: Tensor, reach: int, lengths: Sequence[int]) -> Tensor:
    """Backward attention of several heads to the nearest newer tokens: all tiles of queries in one product."""
    tokens, window = query.shape[-2], REACH_TILE + reach
    outside = _outside_reach(reach, query.dtype, query.device)
    ends = list(itertools.accumulate(lengths))
    outputs = []
    for start in range(0, tokens, REACH_TILE * TILES):
        stop = min(start + REACH_TILE * TILES, tokens)
        tiles = -(-(stop - start) // REACH_TILE)
        behind = start + tiles * REACH_TILE + reach
        keys, values = (
            F.pad(part[..., start:behind, :], (0, 0, 0, max(0, behind - tokens))).unfold(-2, window, REACH_TILE)
            for part in (key, value)
        )  # [..., tiles, width, window]
        queries = F.pad(query[..., start:stop, :], (0, 0, 0, start + tiles * REACH_TILE - stop))
        logits = queries.unflatten(-2, (tiles, REACH_TILE)) @ keys
        logits.add_(outside)
        if len(ends) == 1:
            past = steps(tiles * REACH_TILE + reach, query.device) >= tokens - start
            # finite, since padding behind the last token has nothing else to look at
            logits.masked_fill_(past.unfold(0, window, REACH_TILE)[:, None], torch.finfo(logits.dtype).min)
        # only in tiles whose window goes past the end of a head
        begins = range(start, stop, REACH_TILE)
        last = [ends[bisect_right(ends, begin)] for begin in begins]
        cut = [tile for tile, (begin, end) in enumerate(zip(begins, last, strict=True)) if begin + window > end]
        if cut and len(ends) > 1:
            logits.index_add_(-3, *_past_ends(cut, begins, ends, window, logits))
        outputs.append((logits.softmax(-1) @ values.transpose(-1, -2)).flatten(-3, -2)[..., : stop - start, :])
    return torch.cat(outputs, dim=-2) if len(outputs) != 1 else outputs[0]


def _past_ends(
    cut: Sequence[int], begins: Sequence[int], ends: Sequence[int], window: int, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Numbers of some tiles, and minus infinity where their queries would look past the end of their own heads."""
    device = logits.device
    numbers, bounds = torch.tensor(cut, device=device), torch.tensor(ends, device=device)
    first = torch.tensor([begins[tile] for tile in cut], device=device)[:, None]
    own = first + torch.arange(REACH_TILE, device=device)  # [cut, queries]
    # padding behind the last token looks at itself, or it would have nothing to look at
    heads = torch.searchsorted(bounds, own.clamp_max(ends[-1] - 1), right=True)
    end = torch.maximum(bounds[heads], own + 1)
    past = (first + torch.arange(window, device=device))[:, None] >= end[..., None]
    return numbers, _excluding(past, logits.dtype).expand(*logits.shape[:-3], *past.shape)


@lru_cache(maxsize=16)
def _outside_reach(reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus infinity where a query of a tile does not look, made once."""
    with torch.inference_mode(False):  # also used where gradients are wanted
        return _excluding(band(REACH_TILE, REACH_TILE + reach, 0, reach, device), dtype)


def _excluding(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a mask is True, else 0: to be added, which on a CPU takes less than filling."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)


def token_outputs(
    features: Tensor,
    weights: Mapping[str, Tensor],
    heads: int = 1,
    reach: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """BAM: ``h = f * (1 + M) + R`` with ``[R | M]`` read by backward attention (docs/mathematics.md, 6; paper, 3.2).

    Args:
        features: ``[..., tokens, features]``, oldest first. Tokens of padding may stand *before* the oldest one:
            no token looks at older ones, so they change nothing.
        weights: as named by `unflatten`, leading dimensions broadcast against those of `features`.
        reach, lengths: see `backward_attention`.

    Returns:
        ``[..., tokens, features]``.
    """
    projected = features @ weights["attention.qkv.weight"] + weights["attention.qkv.bias"].unsqueeze(-2)
    query, key, value = projected.unflatten(-1, (3 * heads, -1)).transpose(-2, -3).chunk(3, dim=-3)
    seen = backward_attention(query, key, value, reach, lengths).transpose(-2, -3).flatten(-2)
    read = seen @ weights["attention.output.weight"] + weights["attention.output.bias"].unsqueeze(-2)
    residual, modulation = read.chunk(2, dim=-1)
    return torch.addcmul(features + residual, features, modulation)


def token_scores(
    features: Tensor,
    weights: Mapping[str, Tensor],
    heads: int = 1,
    reach: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """One score a token, ``[..., tokens]``; a token is to be kept where it is >= 0."""
    hidden = token_outputs(features, weights, heads, reach, lengths)
    return (hidden @ weights["score.weight"]).squeeze(-1) + weights["score.bias"]
