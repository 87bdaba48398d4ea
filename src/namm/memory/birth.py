"""What a token pays when it is new: eight numbers of its row of attention, which never change again.

The attention that a token receives says what it was used for so far; what it pays itself tells what kind of token it
is. Heads that look names and numbers up pay almost nothing to them before they are asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BIRTH_FEATURES = 8
NEAR, FAR = 16, 128  # ages up to which a token's row is summed apart
FLOOR = 1e-4


def birth_rows(attention: Tensor, positions: Tensor) -> Tensor:
    """Logarithms of what the newest tokens pay: to themselves, to the token before, to the text's first token, summed
    over ages 2 to `NEAR`, over `NEAR` + 1 to `FAR`, beyond (without the first), the largest single one apart from
    itself, the one before and the first; and of the sum of the squares, which is one over the number of tokens that
    are really looked at.

    Args:
        attention: ``[new, tokens]`` of the newest tokens' own queries, mean over the group; zero beyond the diagonal.
        positions: ``[tokens]`` integers, rising. Tokens that are gone are not counted, and ages are true.

    Returns:
        ``[new, 8]`` float32 logarithms of at least `FLOOR`.
    """
    new, tokens = attention.shape
    begin = max(0, tokens - new - FAR)  # all that is not older than FAR lies in the columns from here on
    near, columns = attention[:, begin:].to(torch.float32, copy=True), positions[begin:].contiguous()
    old = near.shape[1] - new
    ages = torch.tensor([FAR, NEAR, 1, 0], device=positions.device, dtype=positions.dtype)
    edges = torch.searchsorted(columns, columns[old:, None] - ages)  # the first column that is not older
    far, close, previous, own = F.pad(near.cumsum(-1), (1, 0)).gather(1, edges).unbind(-1)
    itself, paid = near.diagonal(old).clone(), attention.sum(-1, dtype=torch.float32)
    oldest, is_first = attention[:, 0].float(), positions[0] == 0
    first = oldest * is_first
    beyond = paid - (own - far) - itself - first * (columns[old:] > FAR)
    squares = torch.linalg.vector_norm(attention, dim=-1, dtype=torch.float32).square()
    # the largest other one: without the token, the one before (or itself again where that is gone), and the first
    near.diagonal(old).zero_()
    near.scatter_(1, edges[:, 2:3], 0)
    near[:, 0].masked_fill_(is_first & (begin == 0), 0)
    largest = torch.maximum(near.amax(-1), (oldest - first) * (begin > 0))
    if begin > 1:
        largest = torch.maximum(largest, attention[:, 1:begin].amax(-1).float())
    found = torch.stack([itself, own - previous, first, previous - close, close - far, beyond, largest, squares], -1)
    return found.clamp_min(FLOOR).log()
