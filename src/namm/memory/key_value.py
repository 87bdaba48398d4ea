"""What a token's key and value tell of it, without any query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_VALUE_FEATURES = 4
FLOOR = 1e-6


def key_value_features(keys: Tensor, values: Tensor) -> Tensor:
    """Logarithms of the norms of the value, of the key, and of the value less the head's mean value; and the cosine of
    the key to the head's mean key.

    Args:
        keys: ``[tokens, width]`` of one head, as cached. values: ``[tokens, value width]``.

    Returns:
        ``[tokens, 4]`` float32.
    """
    keys, values = keys.float(), values.float()
    apart = torch.linalg.vector_norm(values - values.mean(0), dim=-1)
    norms = torch.stack([torch.linalg.vector_norm(values, dim=-1), torch.linalg.vector_norm(keys, dim=-1), apart], -1)
    alike = keys @ F.normalize(keys.mean(0), dim=0) / norms[:, 1].clamp_min(FLOOR)
    return torch.cat([norms.clamp_min(FLOOR).log(), alike[:, None]], dim=-1)
