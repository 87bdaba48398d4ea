"""Steps in which batch rows take the real tokens of one call, each as many as it has room for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Taking:
    """Tensors ``[rows, heads, tokens, width]`` of a call, of which a step takes the next real tokens of every row.

    What is taken is padded on the left to the row that takes most.

    Attributes:
        lengths: real tokens of each row.
        done: how many of these were taken before this step.
        new: how many are taken in this step.
    """

    def __init__(self, rows: int, tokens: int, real: Tensor | None, device: torch.device) -> None:
        """Args: real: ``[rows, tokens]`` bool; None: all are."""
        self.tokens, self.device = tokens, device
        self.lengths = [tokens] * rows if real is None else real.sum(1).tolist()
        self.done, self.new = [0] * rows, [0] * rows
        self.even = True
        self._columns = None
        if real is not None:  # real tokens first
            self._columns = real.to(device, torch.int8).argsort(dim=1, descending=True, stable=True)
        self._parts: list[Tensor] = []
        self._output: Tensor | None = None

    def step(self, room: Sequence[int]) -> bool:
        """Take the next tokens, of each row at most so many; False where none are left."""
        self.done = [before + new for before, new in zip(self.done, self.new, strict=True)]
        self.new = [min(free, length - done) for free, length, done in zip(room, self.lengths, self.done, strict=True)]
        self.even = self._columns is None and len(set(self.done)) == len(set(self.new)) == 1
        if any(self.new) and not self.even:
            most = max(self.new)
            first = torch.tensor([[done + new, new] for done, new in zip(self.done, self.new, strict=True)])
            last, new = first.to(self.device).T[..., None]
            back = torch.arange(most, 0, -1, device=self.device)
            self._there = back <= new  # [rows, most]
            self._places = (last - back).clamp_min_(0)
            if self._columns is not None:
                self._places = self._columns.gather(1, self._places)
        return any(self.new)

    def take(self, tensor: Tensor) -> Tensor:
        """``[rows, heads, n, width]`` of this step; zeros on the left of a row that takes fewer."""
        if self.even:
            return tensor[:, :, self.done[0] : self.done[0] + self.new[0]]
        places = self._places[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
        return tensor.gather(2, places).masked_fill_(~self._there[:, None, :, None], 0)

    def put(self, output: Tensor) -> None:
        """What became of this step's tokens, ``[rows, heads, n, width]``."""
        if self.even and self._output is None:
            self._parts.append(output)
            return
        rows, heads, _, width = output.shape
        if self._output is None:  # one more place for what is none
            self._output = output.new_zeros(rows, heads, self.tokens + 1, width)
            if self._parts:
                self._output[:, :, : self.done[0]] = torch.cat(self._parts, dim=2)
        if self.even:
            self._output[:, :, self.done[0] : self.done[0] + self.new[0]] = output
            return
        places = self._places.masked_fill(~self._there, self.tokens)[:, None, :, None]
        self._output.scatter_(2, places.expand(-1, heads, -1, width), output)

    def output(self) -> Tensor:
        """``[rows, tokens, heads, width]``, zeros for what is no real token."""
        if self._output is not None:
            return self._output[:, :, : self.tokens].transpose(1, 2)
        return (self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts, dim=2)).transpose(1, 2)
