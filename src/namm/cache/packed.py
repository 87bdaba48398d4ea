"""Keys and values of few bits, of many heads together; see `namm.cache.codes` for the arithmetic.

A token is coded once. Unpacked it serves a decision, after which those that stay have the codes that they had. Which
channels a head's keys have is found in the first of its tokens that are packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from namm.cache.codes import decode, encode, frames_of, from_byte, no_frames, precise, to_byte, turned
from namm.cache.storage import TokenStore
from namm.support.tensors import Column, runs

SINKS = 4  # first tokens, which stay exact
KV = "keys", "values"
CODES = "keys", "keys bounds", "values", "values bounds"


@dataclass
class Packing:
    """How heads pack.

    Attributes:
        bits: of a number, 4 or 8.
        frame: centre and size of each channel of each head's keys, ``[2, heads, width]`` float32; None before anything
            was packed.
        framed: of each head, whether these were found in its tokens.
    """

    bits: int
    frame: Tensor | None = None
    framed: list[bool] = field(default_factory=list)

    @classmethod
    def after(cls, packed: Packed) -> Packing:
        """To go on from what was packed elsewhere."""
        return cls(packed.bits, packed.frame, [length > 0 for length in packed.lengths])

    def pack(
        self,
        columns: Mapping[str, Tensor],
        lengths: Sequence[int],
        state: Mapping[str, Column],
        before: Packed | None = None,
        origins: Tensor | None = None,
    ) -> Packed:
        """Pack tokens.

        Args:
            columns: of these, see `namm.cache.storage.TokenStore`, one head's behind the other's.
            lengths: tokens of each head.
            state: see `namm.cache.storage.TokenStore`.
            before: which has the codes of some of them, the oldest of each head.
            origins: where, ``[tokens]`` int: 1 for the first token in `before` and so on, 0 for a token that has no
                codes yet; None: none has.
        """
        keys, starts = columns["keys"], starts_of(lengths)
        heads = owners(lengths, keys.device)
        self._find(keys, heads, lengths)
        sinks, coded = self._counts(columns["positions"], heads, lengths, origins)
        if before is None or origins is None or not any(coded):
            packed = self._encoded(columns, heads)
        else:
            source = (origins.long() - 1).clamp_min_(0)
            packed = {key: before.columns[key].index_select(0, source) for key in CODES}
            if any(new := [own - old for own, old in zip(lengths, coded, strict=True)]):
                where = runs([start + old for start, old in zip(starts, coded, strict=True)], new, keys.device)
                fresh = {name: columns[name].index_select(0, where) for name in KV}
                for key, own in self._encoded(fresh, heads.index_select(0, where)).items():
                    packed[key].index_copy_(0, where, own)
        for name in columns.keys() - set(KV):
            own = columns[name]
            packed[name] = to_byte(own, state[name].bounds) if is_bounded(state, name) else own
        exact = runs(starts, sinks, keys.device)
        packed |= {f"sink {name}": columns[name].index_select(0, exact) for name in KV}
        return Packed(self.bits, keys.dtype, list(lengths), sinks, packed, self.frame, state)

    def select(self, order: Sequence[int]) -> None:
        """Go on with these heads."""
        self.framed = [self.framed[head] for head in order]
        if self.frame is not None:
            self.frame = self.frame[:, list(order)]

    def _encoded(self, columns: Mapping[str, Tensor], heads: Tensor) -> dict[str, Tensor]:
        """Codes and bounds of keys and values of tokens of these heads."""
        assert self.frame is not None
        found = {}
        for name in KV:
            x = columns[name].to(precise(heads.device))
            if name == "keys":
                centre, size = self.frame.to(x.dtype).index_select(1, heads)
                x = (x - centre) / size
            found[name], found[f"{name} bounds"] = encode(turned(x), self.bits)
        return found

    def _find(self, keys: Tensor, heads: Tensor, lengths: Sequence[int]) -> None:
        """Find the frames of heads that have their first tokens here."""
        if self.frame is None:
            self.frame, self.framed = no_frames(len(lengths), keys), [False] * len(lengths)
        missing = [length > 0 and not known for length, known in zip(lengths, self.framed, strict=True)]
        if any(missing):
            found = frames_of(keys, heads, len(lengths))
            where = torch.tensor(missing, device=keys.device)[:, None]
            self.frame = torch.where(where, found, self.frame)
            self.framed = [known or now for known, now in zip(self.framed, missing, strict=True)]

    def _counts(
        self, positions: Tensor, heads: Tensor, lengths: Sequence[int], origins: Tensor | None
    ) -> tuple[list[int], list[int]]:
        """Of each head how many tokens are sinks, and how many have codes; the host waits once."""
        wanted = torch.stack([positions < SINKS, positions < 0 if origins is None else origins > 0]).long()
        counts = wanted.new_zeros(2, len(lengths)).index_add_(1, heads, wanted)
        sinks, coded = counts.tolist()
        return sinks, coded


def packing_of(bits: int | None) -> Packing | None:
    """Of heads that have packed nothing; None: they never do."""
    return None if bits is None else Packing(bits)


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
        bits: see `Packing`.
        dtype: of keys and values when they are unpacked.
        lengths: tokens of each head.
        sinks: of these, how many at its beginning are exact.
        columns: one head's behind the other's: codes of "keys" and "values", their bounds, exact ones of sinks, and all
            others as they are, but for those with bounds (see `Column`), in bytes.
        frame: see `Packing`.
        state: see `TokenStore`.
    """

    bits: int
    dtype: torch.dtype
    lengths: list[int]
    sinks: list[int]
    columns: Mapping[str, Tensor]
    frame: Tensor | None
    state: Mapping[str, Column]

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
        first = sum(self.lengths[:head])
        held = slice(first, first + self.lengths[head])
        if name not in KV:
            return self._other(name, held)
        found = self._unpacked(name, held)
        if name == "keys" and self.frame is not None:
            centre, size = self.frame[:, head]
            found = torch.addcmul(centre, found, size)
        found, first = found.to(self.dtype), sum(self.sinks[:head])
        found[: self.sinks[head]] = self.columns[f"sink {name}"][first : first + self.sinks[head]]
        return found

    def flat(self, name: str) -> Tensor:
        """A column of all tokens, unpacked, one head's behind the other's; heads add no operations."""
        if name not in KV:
            return self._other(name, slice(None))
        found = self._unpacked(name, slice(None))
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

    def _unpacked(self, name: str, held: slice) -> Tensor:
        """Keys or values as they were coded, ``[tokens, width]`` float32."""
        return turned(decode(self.columns[name][held], self.columns[f"{name} bounds"][held], self.bits))

    def _other(self, name: str, held: slice) -> Tensor:
        found = self.columns[name][held]
        return from_byte(found, self.state[name]) if is_bounded(self.state, name) else found
