"""What a token pays when it is new: eight numbers of its row of attention, which never change again.

The attention that a token receives says what it was used for so far; what it pays itself tells what kind of token it
is. Heads that look names and numbers up pay almost nothing to them before they are asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BIRTH_FEATURES = 8
NEAR, FAR = 16, 128  # ages up to which a token's row is summed apart
FLOOR = 1e-4
BIRTH_BOUNDS = (math.log(FLOOR), 0.0)


def birth_rows(attention: Tensor, positions: Tensor, counts: Tensor | None = None) -> Tensor:
    """Logarithms of what the newest tokens pay: to themselves, to the token before, to the text's first token, summed
    over ages 2 to `NEAR`, over `NEAR` + 1 to `FAR`, beyond (without the first), the largest single one apart from
    itself, the one before and the first; and of the sum of the squares, which is one over the number of tokens that
    are really looked at.

    Args:
        attention: ``[..., new, tokens]`` of the newest tokens' own queries, mean over the group; zero beyond the
            diagonal.
        positions: ``[..., tokens]`` integers, rising. Tokens that are gone are not counted, and ages are true.
        counts: ``[...]``, of each head how many of the last tokens there are, the others being without attention and at
            the position -1; None: all.

    Returns:
        ``[..., new, 8]`` float32 logarithms of at least `FLOOR`.
    """
    new, tokens = attention.shape[-2:]
    begin = max(0, tokens - new - FAR)  # all that is not older than FAR lies in the columns from here on
    paid = attention.to(torch.float32, copy=True)
    near, columns = paid[..., begin:], positions[..., begin:].contiguous()
    old = near.shape[-1] - new
    newest = columns[..., old:, None]
    edges = torch.searchsorted(columns, (newest - _edges(positions.dtype, positions.device)).flatten(-2))
    edges = edges.unflatten(-1, (new, -1))  # the first column that is not older
    sums = F.pad(near.cumsum(-1), (1, 0)).gather(-1, edges)
    middle, close, previous = (sums[..., 1:] - sums[..., :-1]).unbind(-1)
    itself = near.diagonal(old, -2, -1).clone()
    start = positions.new_zeros(positions.shape[:-1]) if counts is None else tokens - counts
    start = start.long().unsqueeze(-1)
    is_first = positions.gather(-1, start) == 0
    column = start.unsqueeze(-1).expand(*edges.shape[:-1], 1)
    oldest = paid.gather(-1, column)
    first = oldest.squeeze(-1) * is_first
    beyond = paid.sum(-1) - (sums[..., -1] - sums[..., 0]) - itself - first * (newest.squeeze(-1) > FAR)
    squares = torch.linalg.vector_norm(paid, dim=-1).square()
    # the largest other one: without the token, the one before (or itself again where that is gone), and the first
    paid.scatter_(-1, column, oldest - first.unsqueeze(-1))
    near.diagonal(old, -2, -1).zero_()
    near.scatter_(-1, edges[..., 2:3], 0)
    found = [itself, previous, first, close, middle, beyond, paid.amax(-1), squares]
    return torch.stack(found, -1).clamp_min_(FLOOR).log_()


@lru_cache(maxsize=8)
def _edges(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The ages between which a row is summed; made once, not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor([FAR, NEAR, 1, 0], dtype=dtype, device=device)
