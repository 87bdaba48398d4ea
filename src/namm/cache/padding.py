"""Which of the tokens in a forward pass are real."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.handover import UnsupportedModelError


@dataclass
class PaddingMask:
    """Which of the new tokens are real; judged once a forward pass and shared by all layers."""

    mask: Tensor | None = None
    real: Tensor | None = None

    def real_tokens(self, mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
        """``[batch, tokens]`` bool, or None where all are real.

        Args:
            mask: None, or ``[batch, 1, tokens, tokens]``, bool (True: attend) or additive.

        Raises:
            UnsupportedModelError: if the mask is anything but causal with padding.
        """
        if mask is None:
            self.mask = self.real = None  # a mask of a long prompt is large: do not hold it through decoding
            return None
        if mask is not self.mask:
            self.real, self.mask = _judge_mask(mask, batch, tokens), mask
        return self.real


def _judge_mask(mask: Tensor, batch: int, tokens: int) -> Tensor | None:
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[-2:] != (tokens, tokens):
        raise UnsupportedModelError(
            f"attention mask of shape {tuple(mask.shape)} over {tokens} new tokens: a MemoryCache takes a 2-D padding "
            "mask of the whole sequence, not a mask of its own making or one per head"
        )
    visible = (mask if mask.dtype == torch.bool else mask >= 0)[:, 0]
    real = visible[:, -1]  # the last query sees every real token
    if not bool(real.any()):
        raise ValueError(
            "the attention mask calls all new tokens padding: it must cover the tokens of earlier calls too"
        )
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
    if not bool(((visible == (causal & real[:, None])) | ~real[..., None]).all()):
        raise UnsupportedModelError(
            "the attention mask is not causal with padding (two-way blocks of image tokens, packed sequences?); "
            "a MemoryCache would attend to the wrong tokens"
        )
    return None if bool(real.all()) else real.expand(batch, tokens)
