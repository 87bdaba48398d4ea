"""The scoring network: backward attention memory (BAM) and a linear head, as functions of one flat vector.

Evolution sees a network as a vector of numbers, so the vector is the network here: `unflatten` names its parts
without copying. Any leading dimensions of the vector are a batch of networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from namm.support.tensors import band

QUERY_TILE = 256


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


def backward_attention(query: Tensor, key: Tensor, value: Tensor, reach: int | None = None) -> Tensor:
    """Counter-causal attention: a token looks at itself and at *newer* tokens.

    Tiles of queries look only at the keys from their first one on, up to the reach of their last one, so what no
    token looks at is never made, and no ``[n, n]`` matrix is ever held.

    Args:
        query, key, value: ``[..., tokens, width]``, oldest token first.
        reach: newer tokens that a token looks at, at most; None: all, which takes time quadratic in the tokens.

    Returns:
        ``[..., tokens, width]``.
    """
    tokens = query.shape[-2]
    query = query * query.shape[-1] ** -0.5
    outputs = []
    for start in range(0, tokens, QUERY_TILE):
        stop = min(start + QUERY_TILE, tokens)
        end = tokens if reach is None else min(stop + reach, tokens)
        logits = query[..., start:stop, :] @ key[..., start:end, :].transpose(-1, -2)
        if reach is None:
            rows = stop - start
            logits[..., :rows].masked_fill_(band(rows, rows, 0, rows, query.device), -math.inf)
        else:
            logits.masked_fill_(band(stop - start, end - start, 0, reach, query.device), -math.inf)
        outputs.append(logits.softmax(-1) @ value[..., start:end, :])
    return torch.cat(outputs, dim=-2) if len(outputs) != 1 else outputs[0]


def token_outputs(features: Tensor, weights: Mapping[str, Tensor], heads: int = 1, reach: int | None = None) -> Tensor:
    """BAM: ``h = f * (1 + M) + R`` with ``[R | M]`` read by backward attention (docs/mathematics.md, 6; paper, 3.2).

    Args:
        features: ``[..., tokens, features]``, oldest first. Tokens of padding may stand *before* the oldest one:
            no token looks at older ones, so they change nothing.
        weights: as named by `unflatten`, leading dimensions broadcast against those of `features`.
        reach: see `backward_attention`.

    Returns:
        ``[..., tokens, features]``.
    """
    projected = features @ weights["attention.qkv.weight"] + weights["attention.qkv.bias"].unsqueeze(-2)
    query, key, value = projected.unflatten(-1, (3 * heads, -1)).transpose(-2, -3).chunk(3, dim=-3)
    seen = backward_attention(query, key, value, reach).transpose(-2, -3).flatten(-2)
    read = seen @ weights["attention.output.weight"] + weights["attention.output.bias"].unsqueeze(-2)
    residual, modulation = read.chunk(2, dim=-1)
    return torch.addcmul(features + residual, features, modulation)


def token_scores(features: Tensor, weights: Mapping[str, Tensor], heads: int = 1, reach: int | None = None) -> Tensor:
    """One score a token, ``[..., tokens]``; a token is to be kept where it is >= 0."""
    hidden = token_outputs(features, weights, heads, reach)
    return (hidden @ weights["score.weight"]).squeeze(-1) + weights["score.bias"]
