"""Keys and values of few bits, of many heads together: `namm.cache.codes` says what they mean, and
`namm.cache.packing` how they come to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.codes import decode, from_byte, no_frames, turned
from namm.cache.storage import TokenStore
from namm.support.tensors import Column, round_up, runs

SINKS = 4  # first tokens, which stay exact
KV = "keys", "values"
CODES = "keys", "keys bounds", "values", "values bounds"


def is_bounded(state: Mapping[str, Column], name: str) -> bool:
    """Whether a column of the policy's goes into bytes."""
    return name in state and state[name].bounds is not None


def owners(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Of tokens of several heads, one head's behind the other's, whose they are, ``[tokens]`` int64."""
    return torch.repeat_interleave(torch.tensor(lengths, device=device), output_size=sum(lengths))


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where the tokens of each head begin."""
    return [0, *accumulate(lengths)][:-1]


@dataclass(frozen=True)
class Packed:
    """Tokens as a `TokenStore` has them, with few bits for keys and values; read only, without free slots.

    Attributes:
        bits: see `namm.cache.packing.Packing`; so is `frame`.
        dtype: of keys and values when they are unpacked.
        lengths: tokens of each head.
        sinks: of these, how many at its beginning are exact.
        columns: one head's behind the other's: codes of "keys" and "values", their bounds, exact ones of sinks, and all
            others as they are, but for those with bounds (see `Column`), in bytes.
        state: see `TokenStore`.
    """

    bits: int
    dtype: torch.dtype
    lengths: list[int]
    sinks: list[int]
    columns: Mapping[str, Tensor]
    frame: Tensor | None
    state: Mapping[str, Column]
    _open: list[dict[tuple[int, str], Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def heads(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Of all heads."""
        return sum(self.lengths)

    @property
    def names(self) -> list[str]:
        """Of the columns that tokens have when they are unpacked."""
        return [name for name in self.columns if not name.startswith("sink ") and not name.endswith(" bounds")]

    def column(self, head: int, name: str) -> Tensor:
        """A column of a head's tokens, unpacked."""
        if name in KV:
            return self._unpacked(head, name)[: self.lengths[head]]
        first = sum(self.lengths[:head])
        return self._other(name, slice(first, first + self.lengths[head]))

    def parts(self, head: int) -> list[tuple[Tensor, Tensor, int]]:
        """See `TokenStore.parts`."""
        return [(self._unpacked(head, "keys"), self._unpacked(head, "values"), self.lengths[head])]

    @contextmanager
    def unpacked_once(self) -> Iterator[None]:
        """While it lasts, what is unpacked stays so: for several rows that read the same in turn."""
        self._open.append({})
        try:
            yield
        finally:
            self._open.pop()

    def flat(self, name: str) -> Tensor:
        """A column of all tokens, unpacked, one head's behind the other's; heads add no operations."""
        if name not in KV:
            return self._other(name, slice(None))
        found = self._decoded(name, slice(None))
        if name == "keys" and self.frame is not None:
            heads = torch.repeat_interleave(self._counts, output_size=self.tokens)
            centre, size = self.frame.index_select(1, heads)
            found = torch.addcmul(centre, found, size)
        return found.to(self.dtype).index_copy_(0, self._sinks, self.columns[f"sink {name}"])

    def head(self, head: int) -> dict[str, Tensor]:
        """A head's tokens, unpacked, oldest first; not to be written to."""
        return {name: self.column(head, name) for name in self.names}

    def own(self) -> TokenStore:
        """A store with the same tokens, unpacked."""
        return TokenStore.of([self.head(head) for head in range(self.heads)], self.state)

    def select(self, order: Sequence[int]) -> Packed:
        """These heads."""
        lengths, sinks = ([own[head] for head in order] for own in (self.lengths, self.sinks))
        device = self.columns["positions"].device
        begins, firsts = starts_of(self.lengths), starts_of(self.sinks)
        held = runs([begins[head] for head in order], lengths, device)
        exact = runs([firsts[head] for head in order], sinks, device)
        columns = {
            name: column.index_select(0, exact if name.startswith("sink ") else held)
            for name, column in self.columns.items()
        }
        frame = None if self.frame is None else self.frame[:, list(order)]
        return replace(self, lengths=lengths, sinks=sinks, columns=columns, frame=frame)

    @staticmethod
    def joined(parts: Sequence[Packed]) -> Packed:
        """The heads of several, which have the same columns."""
        frames = [no_frames(own.heads, own.flat("keys")) if own.frame is None else own.frame for own in parts]
        columns = {name: torch.cat([own.columns[name] for own in parts]) for name in parts[0].columns}
        lengths, sinks = ([one for own in parts for one in getattr(own, name)] for name in ("lengths", "sinks"))
        return replace(parts[0], lengths=lengths, sinks=sinks, columns=columns, frame=torch.cat(frames, dim=1))

    def nbytes(self, *names: str) -> int:
        """Bytes of the named columns with all that belongs to them (all if none is named)."""
        return self.bytes_of(range(self.heads), *names)

    def bytes_of(self, heads: Sequence[int], *names: str) -> int:
        """Of these, what belongs to some heads."""
        found = 0
        for name, column in self.columns.items():
            if not names or set(name.split()) & set(names):
                tokens = self.sinks if name.startswith("sink ") else self.lengths
                found += column[:1].numel() * column.element_size() * sum(tokens[head] for head in heads)
        if self.frame is not None and (not names or "keys" in names):
            found += self.frame.nbytes // self.heads * len(heads)
        return found

    def least_bytes(self) -> int:
        """Bytes that keys and values need."""
        return self.nbytes(*KV)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for head in range(self.heads):
            positions = self.column(head, "positions")
            assert bool((positions.diff() > 0).all()), f"head {head}: positions do not rise"
            assert int((positions < SINKS).sum()) == self.sinks[head], f"head {head} has {self.sinks[head]} sinks"
        for name, column in self.columns.items():
            wanted = sum(self.sinks) if name.startswith("sink ") else self.tokens
            assert len(column) == wanted, f"column {name!r} has {len(column)} tokens, expected {wanted}"
            assert column.untyped_storage().nbytes() == column.nbytes, f"{name!r} is a view"

    @cached_property
    def places(self) -> Tensor:
        """Of each head where its tokens begin, how many there are, and the same of its sinks: ``[4, heads]`` int32."""
        told = starts_of(self.lengths), self.lengths, starts_of(self.sinks), self.sinks
        with torch.inference_mode(False):
            return torch.tensor(told, dtype=torch.int32, device=self.columns["positions"].device)

    @cached_property
    def _counts(self) -> Tensor:
        """`lengths` on the device."""
        return torch.tensor(self.lengths, device=self.columns["positions"].device)

    @cached_property
    def _sinks(self) -> Tensor:
        """Where the exact tokens are, ``[sinks]`` int64."""
        return runs(starts_of(self.lengths), self.sinks, self.columns["positions"].device)

    def _unpacked(self, head: int, name: str) -> Tensor:
        """Keys or values of a head, free slots behind them, see `round_up`; not to be written to."""
        if self._open and (head, name) in self._open[-1]:
            return self._open[-1][head, name]
        first, tokens = sum(self.lengths[:head]), self.lengths[head]
        found = self._decoded(name, slice(first, first + tokens))
        if name == "keys" and self.frame is not None:
            centre, size = self.frame[:, head]
            found = torch.addcmul(centre, found, size)
        found, first = found.to(self.dtype), sum(self.sinks[:head])
        found[: self.sinks[head]] = self.columns[f"sink {name}"][first : first + self.sinks[head]]
        found = F.pad(found, (0, 0, 0, round_up(tokens) - tokens))
        if self._open:
            self._open[-1][head, name] = found
        return found

    def _decoded(self, name: str, held: slice) -> Tensor:
        """Keys or values as they were coded, ``[tokens, width]`` float32."""
        return turned(decode(self.columns[name][held], self.columns[f"{name} bounds"][held], self.bits))

    def _other(self, name: str, held: slice) -> Tensor:
        found = self.columns[name][held]
        return from_byte(found, self.state[name]) if is_bounded(self.state, name) else found
