"""What a token changes: the unit of a distilled memory's scores."""

from __future__ import annotations

import torch
from torch import Tensor

MINIMUM_REST = 0.01  # attention left for others, below which a token is simply needed
EVERY = 2  # of the queries is asked for influence, which costs as much as the attention itself
FLOOR = 1e-5  # influence below this is nothing


def influence(attention: Tensor, values: Tensor, tokens: int) -> Tensor:
    """How much the outputs of some queries would change if one of the first `tokens` tokens were not there.

    Without token t, the output of a query that pays it the attention a is ``o + a / (1 - a) * (o - v_t)`` exactly, so
    the squared change relative to the output is ``(a / (1 - a))^2 * |o - v_t|^2 / |o|^2``. Attention alone would not
    do: a token whose value is like the output may go unnoticed, and an attention sink, which has hardly any value, may
    not.

    Args:
        attention: ``[group, queries, all tokens]``. values: ``[all tokens, width]``.

    Returns:
        ``[tokens]`` float32: the root of the sum over all queries.
    """
    attention, values = attention.flatten(0, 1).float(), values.float()
    output = attention @ values
    energy = output.square().sum(-1, keepdim=True)
    attention, values = attention[:, :tokens], values[:tokens]
    distance = torch.addmm(values.square().sum(-1) + energy, output, values.T, alpha=-2).clamp_min_(0)
    change = (attention / (1 - attention).clamp_min(MINIMUM_REST)).square_() * distance
    return (change / energy.clamp_min(1e-12)).sum(0).sqrt()


def score_of(influence: Tensor, power: float, shift: float) -> Tensor:
    """The score of a token whose influence is known: ``power * log(influence + FLOOR) - shift``."""
    return power * (influence.float() + FLOOR).log() - shift
