"""The tokens that one layer keeps for one batch row: flat columns in which every KV head owns a segment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from namm.support.tensors import SEGMENT, Column, round_up, writable


class TokenStore:
    """Keys, values, positions and policy state of the tokens kept, ragged over heads.

    Head h owns the slots ``starts[h] : starts[h] + capacities[h]`` of every column, of which the first ``lengths[h]``
    hold tokens. Capacities are whole steps of `round_up`. Invariants (see `check`): segments follow one another without
    gaps, a segment's positions rise strictly, and free slots are zero in every column.

    Attributes:
        columns: name -> ``[slots, ...]``; "keys" and "values" ``[slots, width]``, "positions" ``[slots]`` int32, and
            from the first `make_writable` on the policy's state, which would be all zeros before.
        lengths: tokens of each head.
    """

    def __init__(self, heads: int, key_like: Tensor, value_like: Tensor, state: Mapping[str, Column]) -> None:
        self.heads = heads
        self.starts, self.lengths, self.capacities = [0] * heads, [0] * heads, [0] * heads
        device = key_like.device
        self.columns = {
            "keys": key_like.new_zeros(0, key_like.shape[-1]),
            "values": value_like.new_zeros(0, value_like.shape[-1]),
            "positions": torch.zeros(0, dtype=torch.int32, device=device),
        }
        self._state = dict(state)

    @classmethod
    def of(cls, heads: Sequence[Mapping[str, Tensor]], state: Mapping[str, Column]) -> TokenStore:
        """With copies of each head's tokens, columns as in `head`."""
        made = cls(len(heads), heads[0]["keys"], heads[0]["values"], state)
        made.lengths = [len(own["positions"]) for own in heads]
        made.capacities = [round_up(length) for length in made.lengths]
        made.starts = [sum(made.capacities[:head]) for head in range(len(heads))]
        for name, like in heads[0].items():
            made.columns[name] = like.new_zeros(sum(made.capacities), *like.shape[1:])
            for span, own in zip(made.spans(), heads, strict=True):
                made.columns[name][span] = own[name]
        return made

    def head(self, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first; writing to them writes the store."""
        start, stop = self.starts[head], self.starts[head] + self.lengths[head]
        return {name: column[start:stop] for name, column in self.columns.items()}

    def column(self, head: int, name: str) -> Tensor:
        """A view of a head's tokens in a column."""
        start = self.starts[head]
        return self.columns[name][start : start + self.lengths[head]]

    def spans(self) -> list[slice]:
        """The slots that hold each head's tokens."""
        return [slice(start, start + length) for start, length in zip(self.starts, self.lengths, strict=True)]

    def segment(self, head: int, name: str) -> Tensor:
        """A view of all slots of a head, free ones included."""
        return self.columns[name][self.slots(head)]

    def parts(self, head: int) -> list[tuple[Tensor, Tensor, int]]:
        """Keys and values of a head ``[slots, width]``, and how many of them are tokens; not to be written to.

        In one piece here, of as many slots as `round_up` says.
        """
        start, tokens = self.starts[head], self.lengths[head]
        slots = slice(start, start + round_up(tokens))
        return [(self.columns["keys"][slots], self.columns["values"][slots], tokens)]

    def slots(self, head: int) -> slice:
        """All slots of a head, free ones included."""
        return slice(self.starts[head], self.starts[head] + self.capacities[head])

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add the same tokens to every head.

        Args:
            keys: ``[heads, tokens, width]``. values: ``[heads, tokens, value width]``.
            positions: ``[tokens]`` integers, newer than all that is stored.
        """
        tokens = keys.shape[1]
        if any(length + tokens > slots for length, slots in zip(self.lengths, self.capacities, strict=True)):
            spare = max(tokens, min(SEGMENT, max(self.lengths) // 4))  # of a cache that grows by single tokens
            self._relocate([None] * self.heads, spare)
        self._writable_columns("keys", "values", "positions")
        for head, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            slots = slice(start + length, start + length + tokens)
            self.columns["keys"][slots] = keys[head]
            self.columns["values"][slots] = values[head]
            self.columns["positions"][slots] = positions
        self.lengths = [length + tokens for length in self.lengths]

    def make_writable(self) -> None:
        """Call before writing to views of `head`: columns of inference mode are copied where that is over."""
        slots, device = sum(self.capacities), self.columns["positions"].device
        for name, column in self._state.items():
            if name not in self.columns:
                self.columns[name] = torch.zeros(slots, *column.shape, dtype=column.dtype, device=device)
        self._writable_columns(*self.columns)

    def _writable_columns(self, *names: str) -> None:
        for name in names:
            self.columns[name] = writable(self.columns[name])

    def keep(self, indices: Sequence[Tensor]) -> None:
        """Forget all but the given tokens of each head and free their memory.

        Args:
            indices: for each head a rising ``[kept]`` int64 tensor of indices into its tokens.
        """
        tight = [round_up(length) for length in self.lengths] == self.capacities
        if not tight or [len(own) for own in indices] != self.lengths:
            self._relocate(indices)

    def own(self) -> TokenStore:
        """A copy."""
        return self.clone()

    def clone(self) -> TokenStore:
        other = object.__new__(TokenStore)
        other.heads, other._state = self.heads, self._state
        other.starts, other.lengths, other.capacities = list(self.starts), list(self.lengths), list(self.capacities)
        other.columns = {name: column.clone() for name, column in self.columns.items()}
        return other

    def nbytes(self, *names: str) -> int:
        """Bytes of the storage behind the named columns (all if none is named), free slots included."""
        return sum(self.columns[name].untyped_storage().nbytes() for name in names or self.columns)

    def shared_bytes(self) -> int:
        """Of these, what other rows hold as well: nothing."""
        return 0

    def token_bytes(self, *names: str) -> int:
        """Bytes of one token in the named columns."""
        return sum(math.prod(self.columns[name].shape[1:]) * self.columns[name].element_size() for name in names)

    def least_bytes(self) -> int:
        """Bytes that keys and values of the tokens need at least."""
        return sum(self.lengths) * self.token_bytes("keys", "values")

    def check(self) -> None:
        """Raises AssertionError, naming the head, where an invariant does not hold."""
        end = 0
        for head in range(self.heads):
            assert self.starts[head] == end, f"head {head} starts at {self.starts[head]}, expected {end}"
            assert 0 <= self.lengths[head] <= self.capacities[head], f"head {head} is longer than its segment"
            assert self.capacities[head] == round_up(self.capacities[head]), (
                f"head {head} has {self.capacities[head]} slots"
            )
            end += self.capacities[head]
            positions = self.head(head)["positions"]
            assert bool((positions.diff() > 0).all()), f"head {head}: positions do not rise"
            for name in self.columns:
                assert not self.segment(head, name)[self.lengths[head] :].any(), f"head {head}: free {name!r} not zero"
        for name, column in self.columns.items():
            assert column.shape[0] == end, f"column {name!r} has {column.shape[0]} slots, expected {end}"
            assert column.untyped_storage().nbytes() == column.numel() * column.element_size(), f"{name!r} is a view"

    def _relocate(self, kept: Sequence[Tensor | None], spare: int = 0) -> None:
        """Move the kept tokens of each head (None: all) to segments with room for `spare` more."""
        spans = self.spans()
        lengths = [length if own is None else len(own) for length, own in zip(self.lengths, kept, strict=True)]
        capacities = [round_up(length + spare) for length in lengths]
        starts = [sum(capacities[:head]) for head in range(self.heads)]
        for name, column in self.columns.items():
            fresh = column.new_zeros(sum(capacities), *column.shape[1:])
            for span, own, start, length in zip(spans, kept, starts, lengths, strict=True):
                if own is None:
                    fresh[start : start + length] = column[span]
                else:
                    torch.index_select(column[span], 0, own, out=fresh[start : start + length])
            self.columns[name] = fresh
        self.starts, self.lengths, self.capacities = starts, lengths, capacities
