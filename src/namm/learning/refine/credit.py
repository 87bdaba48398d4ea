"""What it cost, or saved, that a token was there: the backward pass of attention under a memory.

Keep-or-drop has no derivative, but what a decision changes can be computed: had token j not been there, the output of a
query that pays it the attention a would differ by ``a / (1 - a) * (o - v_j)`` exactly, and had a dropped token been
there, by a like amount. Multiplied by the gradient of a loss with respect to that output, it is the *credit* of the
decision: the loss with the token less the loss without it, to first order in what follows the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MINIMUM_REST = 0.02  # attention left for others: a token with all of the attention has no finite credit
LARGEST_RATIO = 8.0  # logarithm of what a dropped token would weigh beside all that is there


def attention_backward(
    query: Tensor, key: Tensor, value: Tensor, incoming: Tensor, scaling: float, held: Sequence[Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
    """Gradients of causal attention, in blocks, to what each KV head held, and the credit of every token in each block.

    Args:
        query: ``[query heads, tokens, width]``. key: ``[KV heads, tokens, width]``. value: like the key.
        incoming: ``[query heads, tokens, value width]``, gradient of the loss with respect to the output.
        held: for each block ``[KV heads, tokens to the block's end]`` bool, which tokens were there.

    Returns:
        Gradients for query, key and value, in their dtypes, and for each block ``[KV heads, tokens to its end]``
        float32: the loss with the token less the loss without it, summed over the block's queries.
    """
    heads, group = key.shape[0], query.shape[0] // key.shape[0]
    to_query = torch.empty_like(query)
    to_key, to_value = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
    credits, start = [], 0
    for there in held:
        stop = there.shape[1]
        credit = torch.empty(heads, stop, device=key.device)
        for h in range(heads):
            own = slice(h * group, (h + 1) * group)
            asked = query[own, start:stop]
            dropped = ~there[h]
            ratio = _logits(asked, key[h, :stop], scaling)
            ratio -= ratio.masked_fill(dropped, -math.inf).logsumexp(-1, keepdim=True)
            ratio = ratio.clamp_max_(LARGEST_RATIO).exp_().flatten(0, 1)  # of a dropped token it may exceed 1
            probabilities = ratio.masked_fill(dropped, 0)
            came = incoming[own, start:stop].flatten(0, 1)
            change = (came @ value[h, :stop].T).float()
            change -= (probabilities * change).sum(-1, keepdim=True)
            rest = torch.where(dropped, 1 + ratio, (1 - ratio).clamp_min_(MINIMUM_REST))
            credit[h] = (ratio.div_(rest).mul_(change)).sum(0)
            to_logits = (probabilities * change).to(query.dtype)
            to_query[own, start:stop] = (to_logits @ key[h, :stop] * scaling).view_as(asked)
            to_key[h, :stop] += (to_logits.T @ asked.flatten(0, 1)).float() * scaling
            to_value[h, :stop] += (probabilities.to(came.dtype).T @ came).float()
        credits.append(credit)
        start = stop
    return (to_query, to_key.to(key.dtype), to_value.to(value.dtype)), credits


def credit_of_decision(
    positions: Tensor, kept: Tensor, block: int, credits: Sequence[Tensor], held: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Credit in the blocks in which a decision holds, and how many those are.

    Of a token that stayed these are the later blocks while it is there; of one that went, all later blocks.

    Args:
        positions: ``[tokens]``, decided on at the end of block number `block`. kept: ``[tokens]`` bool.
        credits, held: of one head, for each block ``[tokens to its end]``.

    Returns:
        Two tensors ``[tokens]`` float32; a block that was cut short counts for its share of a whole one.
    """
    total, blocks = torch.zeros(2, len(positions), device=positions.device)
    interval = len(held[0])
    for later in range(block + 1, len(held)):
        counts = held[later][positions] == kept
        total += credits[later][positions] * counts
        blocks += counts * (len(held[later]) / interval - later)
    return total, blocks


def _logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Causal logits ``[group, queries, tokens]`` float32 of the newest tokens' own queries."""
    group, queries, width = query.shape
    logits = ((query * scaling).reshape(group * queries, width) @ key.T).float().view(group, queries, -1)
    future = torch.ones(queries, queries, dtype=torch.bool, device=query.device).triu(1)
    logits[..., -queries:].masked_fill_(future, -math.inf)
    return logits
