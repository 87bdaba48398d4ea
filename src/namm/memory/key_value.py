"""What a token's key and value tell of it, without any query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_VALUE_FEATURES = 4
FLOOR = 1e-6


def key_value_features(keys: Tensor, values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Logarithms of the norms of the value, of the key, and of the value less the head's mean value; and the cosine of
    the key to the head's mean key.

    Args:
        keys: ``[..., tokens, width]`` of heads, as cached. values: ``[..., tokens, value width]``.
        counts: ``[...]``, of each head how many of the last tokens there are, the others being zero; None: all.

    Returns:
        ``[..., tokens, 4]`` float32.
    """
    keys, values = keys.float(), values.float()
    apart = torch.linalg.vector_norm(values - _mean(values, counts), dim=-1)
    norms = torch.stack([torch.linalg.vector_norm(values, dim=-1), torch.linalg.vector_norm(keys, dim=-1), apart], -1)
    norms = norms.clamp_min_(FLOOR)
    alike = keys @ F.normalize(_mean(keys, counts), dim=-1).transpose(-1, -2)
    return torch.cat([norms.log(), alike / norms[..., 1:2]], dim=-1)


def _mean(vectors: Tensor, counts: Tensor | None) -> Tensor:
    """``[..., 1, width]``, over the tokens."""
    if counts is None:
        return vectors.mean(-2, keepdim=True)
    return vectors.sum(-2, keepdim=True) / counts[..., None, None]
