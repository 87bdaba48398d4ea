"""The backward pass of attention of one KV head, from its queries, keys and values alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from namm.cache.arithmetic import QUERY_TILE, AttentionForm
from namm.support.tensors import round_up


class Gradients(NamedTuple):
    """Of a loss with respect to the inputs of attention.

    Attributes:
        query: ``[group, queries, width]`` in the dtype of the queries.
        keys: ``[slots, width]``, in float32 at least; so are the others.
        values: ``[slots, value width]``.
        sinks: ``[group]``, None without sinks.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    sinks: Tensor | None


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which what comes from many queries is summed up."""
    return torch.promote_types(dtype, torch.float32)


def attention_backward(
    query: Tensor, keys: Tensor, values: Tensor, tokens: int, incoming: Tensor, form: AttentionForm
) -> Gradients:
    """Gradients of `namm.cache.arithmetic.attend`, in tiles of queries.

    With probabilities p, the gradient g of an output and v of the values, a logit gets ``p * (g v - sum(p * g v))``.

    Args:
        query: ``[group, queries, width]``, the newest tokens' own.
        keys, values: ``[slots, width]`` each, of which the first ``tokens >= queries`` count.
        incoming: ``[group, queries, value width]``.
    """
    group, queries, width = query.shape
    exact, older = wide(query.dtype), tokens - queries
    to_query = torch.empty_like(query)
    to_keys, to_values = (torch.zeros_like(tensor, dtype=exact) for tensor in (keys, values))
    to_sinks = None if form.sinks is None else torch.zeros(group, dtype=exact, device=query.device)
    for start in range(0, queries, QUERY_TILE):
        stop = min(start + QUERY_TILE, queries)
        slots = min(round_up(older + stop), keys.shape[0])
        asked = query[:, start:stop]
        logits = form.between(asked * form.scaling, keys[:slots], older + stop).to(exact)
        probabilities = form.softmax(logits)
        came = incoming[:, start:stop].reshape(-1, values.shape[1]).to(query.dtype)
        change = (came @ values[:slots].T).to(exact).view_as(logits)
        mean = (probabilities * change).sum(-1, keepdim=True)
        to_logits = change.sub_(mean).mul_(probabilities)
        if form.softcap is not None:  # of tanh; a masked logit is minus infinity, where it is flat
            to_logits *= 1 - (logits / form.softcap).clamp_min(-1).square()
        if form.sinks is not None and to_sinks is not None:
            to_sinks -= ((1 - probabilities.sum(-1)) * mean.squeeze(-1)).sum(-1)
        to_products = to_logits.to(query.dtype).flatten(0, 1) * form.scaling
        to_query[:, start:stop] = (to_products @ keys[:slots]).view_as(asked)
        to_keys[:slots] += (to_products.T @ asked.reshape(-1, width)).to(exact)
        to_values[:slots] += (probabilities.to(came.dtype).flatten(0, 1).T @ came).to(exact)
    return Gradients(to_query, to_keys, to_values, to_sinks)
