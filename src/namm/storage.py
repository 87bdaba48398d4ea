"""The tokens that one layer keeps for one batch row: flat columns in which every KV head owns a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 64  # free slots a head gets when it is full; 512 would be 40% of a small cache


@dataclass(frozen=True)
class Column:
    """One more value per token, stored and forgotten with it; zero for new tokens."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


class TokenStore:
    """Keys, values, positions and policy state of the tokens kept, ragged over heads.

    Head h owns the slots ``starts[h] : starts[h] + lengths[h]`` of every column and some free ones behind them, so
    that appending copies nothing. Invariants (see `check`): segments do not overlap, lie in order, and every
    segment's positions rise strictly; free slots hold zero state.

    Attributes:
        columns: name -> ``[slots, ...]``; always "keys" and "values" ``[slots, width]``, "positions" ``[slots]`` int32.
        lengths: tokens of each head.
    """

    def __init__(
        self, heads: int, key_like: Tensor, value_like: Tensor, state: Mapping[str, Column], reserve: int = 0
    ) -> None:
        self.heads = heads
        self.starts = [head * reserve for head in range(heads)]
        self.lengths = [0] * heads
        self.capacities = [reserve] * heads
        slots, device = heads * reserve, key_like.device
        self.columns = {
            "keys": key_like.new_empty(slots, key_like.shape[-1]),
            "values": value_like.new_empty(slots, value_like.shape[-1]),
            "positions": torch.zeros(slots, dtype=torch.int32, device=device),
        } | {name: torch.zeros(slots, *c.shape, dtype=c.dtype, device=device) for name, c in state.items()}

    def head(self, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first; writing to them writes the store."""
        start, stop = self.starts[head], self.starts[head] + self.lengths[head]
        return {name: column[start:stop] for name, column in self.columns.items()}

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add the same tokens to every head.

        Args:
            keys: ``[heads, tokens, width]``. values: ``[heads, tokens, value width]``.
            positions: ``[tokens]`` integers, newer than all that is stored.
        """
        tokens = keys.shape[1]
        if any(length + tokens > free for length, free in zip(self.lengths, self.capacities, strict=True)):
            spare = tokens if tokens >= GROWTH else GROWTH
            self._relocate([length + spare for length in self.lengths])
        self.columns = {name: writable(column) for name, column in self.columns.items()}
        for head, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            slots = slice(start + length, start + length + tokens)
            self.columns["keys"][slots] = keys[head]
            self.columns["values"][slots] = values[head]
            self.columns["positions"][slots] = positions
        self.lengths = [length + tokens for length in self.lengths]

    def keep(self, indices: Sequence[Tensor]) -> None:
        """Forget all but the given tokens of each head and free their memory.

        Args:
            indices: for each head a rising ``[kept]`` int64 tensor of indices into its tokens.
        """
        slots = torch.cat([index + start for index, start in zip(indices, self.starts, strict=True)])
        self.columns = {name: column.index_select(0, slots) for name, column in self.columns.items()}
        self.lengths = [len(index) for index in indices]
        self.capacities = list(self.lengths)
        self.starts = _offsets(self.capacities)

    def clone(self) -> TokenStore:
        other = object.__new__(TokenStore)
        other.heads = self.heads
        other.starts, other.lengths, other.capacities = list(self.starts), list(self.lengths), list(self.capacities)
        other.columns = {name: column.clone() for name, column in self.columns.items()}
        return other

    def nbytes(self, *names: str) -> int:
        """Bytes of the storage behind the named columns (all if none is named), free slots included."""
        return sum(self.columns[name].untyped_storage().nbytes() for name in names or self.columns)

    def check(self) -> None:
        """Raises AssertionError, naming the head, where an invariant does not hold."""
        end = 0
        for head in range(self.heads):
            assert self.starts[head] == end, f"head {head} starts at {self.starts[head]}, expected {end}"
            assert 0 <= self.lengths[head] <= self.capacities[head], f"head {head} is longer than its segment"
            end += self.capacities[head]
            positions = self.head(head)["positions"]
            assert bool((positions.diff() > 0).all()), f"head {head}: positions do not rise"
            for name, column in self.columns.items():
                if name not in ("keys", "values", "positions"):
                    free = column[self.starts[head] + self.lengths[head] : end]
                    assert not free.any(), f"head {head}: free slots of {name!r} are not zero"
        for name, column in self.columns.items():
            assert column.shape[0] == end, f"column {name!r} has {column.shape[0]} slots, expected {end}"
            assert column.untyped_storage().nbytes() == column.numel() * column.element_size(), f"{name!r} is a view"

    def _relocate(self, capacities: list[int]) -> None:
        starts = _offsets(capacities)
        for name, column in self.columns.items():
            fresh = column.new_zeros(sum(capacities), *column.shape[1:])
            for old, new, length in zip(self.starts, starts, self.lengths, strict=True):
                fresh[new : new + length] = column[old : old + length]
            self.columns[name] = fresh
        self.starts, self.capacities = starts, capacities


def writable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode where that is over: torch forbids writing to it."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def _offsets(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
