"""Which tokens are real, as the masks of one forward pass after the other tell it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.serves import UnsupportedModelError


@dataclass(frozen=True)
class Told:
    """What a mask said of one forward pass.

    Attributes:
        offset: tokens that were cached before it, padding included. tokens: new ones.
        real: ``[batch, tokens]`` bool, which of the new ones are real; None: all.
        hidden: for each row the positions (counted in real tokens) of cached tokens that the mask hides from now on,
            rising; None: nowhere any.
    """

    offset: int
    tokens: int
    real: Tensor | None
    hidden: list[Tensor] | None


@dataclass
class Padding:
    """What 2-D masks said; judged once a forward pass and shared by all layers of a cache.

    A token that a later mask hides is forgotten: every query that follows would pay it nothing.

    Attributes:
        visible: ``[batch, columns]`` bool, the columns of the mask that are real and were never hidden; None: all.
        now: of the forward pass that is running; None: nothing was said.
    """

    visible: Tensor | None = None
    now: Told | None = None
    _judged: tuple[Tensor, Tensor | None] | None = None

    def told(self, mask: Tensor | None, offset: int, tokens: int) -> None:
        """Note what comes with `tokens` new tokens after `offset` others: a mask ``[batch, columns]``, non-zero: real.

        Raises:
            ValueError: if it doesn't cover all tokens, calls all new ones padding, or shows what was hidden before.
        """
        self.now = self._judged = None
        if mask is None:
            if self.visible is not None:
                self.visible = _with_columns(self.visible, offset + tokens)
            return
        if mask.shape[-1] < offset + tokens:
            raise ValueError(
                f"the attention mask has {mask.shape[-1]} columns for {offset} cached tokens and {tokens} new ones: it "
                "must cover the tokens of earlier calls too"
            )
        mask = mask[:, : offset + tokens].bool()
        if bool(mask.all()) and self.visible is None:
            return
        new = mask[:, offset:]
        if not bool(new.any()):
            raise ValueError("the attention mask calls all new tokens padding")
        before = torch.ones_like(mask) if self.visible is None else _with_columns(self.visible, offset)
        before = before[:, :offset].to(mask.device)
        if bool((mask[:, :offset] & ~before).any()):
            raise ValueError(
                "the attention mask shows tokens that an earlier one hid: they were forgotten and can't come back"
            )
        newly = before & ~mask[:, :offset]
        hidden = None
        if bool(newly.any()):
            positions = before.cumsum(1) - 1
            hidden = [row_positions[row] for row_positions, row in zip(positions, newly, strict=True)]
        self.visible = mask
        self.now = Told(offset, tokens, None if bool(new.all()) else new, hidden)

    def before(self, columns: int, rows: int) -> Tensor:
        """``[rows, columns]`` bool, which of the columns so far are real and were never hidden."""
        return (
            torch.ones(rows, columns, dtype=torch.bool)
            if self.visible is None
            else _with_columns(self.visible, columns)
        )

    def at(self, offset: int, tokens: int) -> Told | None:
        """What was said of the forward pass that a layer is in."""
        now = self.now
        return now if now is not None and (now.offset, now.tokens) == (offset, tokens) else None

    def real(self, mask: Tensor | None, told: Told | None, batch: int, tokens: int) -> Tensor | None:
        """Which new tokens are real: by the mask that came to a layer, or by what was told; see `real_tokens`."""
        if mask is None:
            self._judged = None  # a mask of a long prompt is large: do not hold it through decoding
            return told.real if told is not None else None
        if self._judged is None or self._judged[0] is not mask:
            self._judged = mask, real_tokens(mask, batch, tokens)
        return self._judged[1]

    def select(self, indices: Tensor) -> None:
        """Move batch rows."""
        if self.visible is not None:
            self.visible = self.visible[indices.to(self.visible.device)]
        self.now = self._judged = None

    def reset(self) -> None:
        self.visible = self.now = self._judged = None


def _with_columns(visible: Tensor, columns: int) -> Tensor:
    """So many columns: those of calls without a mask are real, those of a call that failed are gone."""
    missing = columns - visible.shape[1]
    return torch.cat([visible, visible.new_ones(len(visible), max(0, missing))], dim=1)[:, :columns]


def real_tokens(mask: Tensor, batch: int, tokens: int) -> Tensor | None:
    """Which new tokens a mask that the model made itself calls real: ``[batch, tokens]`` bool, None where all are.

    Args:
        mask: ``[batch, columns]``, or ``[batch, 1, tokens, tokens]``, bool (True: attend) or additive.

    Raises:
        UnsupportedModelError: if the mask is anything but causal with padding.
    """
    if mask.ndim == 2 and mask.shape[-1] >= tokens:
        real = mask[:, mask.shape[-1] - tokens :].bool()
        return None if bool(real.all()) else real.expand(batch, tokens)
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
