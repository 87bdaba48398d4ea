"""Keys and values of few bits: of every token, whole numbers between the bounds of each group of its channels.

    code = round((x - low) / (high - low) * (2^bits - 1))

asymmetrically and token by token, as KIVI (arXiv 2402.02750) has it for values. So that channels may share bounds, they
are turned by a Hadamard matrix first, which spreads large ones over all (QuaRot, arXiv 2404.00456); and before that, as
keys differ from channel to channel, the channels of a head's keys are brought to one centre and nearer to one size, by
the root of theirs (SmoothAttention in QServe, arXiv 2405.04532), as found in the first tokens that the row packed.

A token is coded once. Unpacked it serves a decision, after which those that stay have the codes that they had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.storage import TokenStore
from namm.support.tensors import Column, round_up

BITS = 4, 8
GROUP = 64  # channels that share bounds, at most
SINKS = 4  # first tokens, which stay exact
BOUNDS = torch.bfloat16
KV = "keys", "values"


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and bounds.

    Args:
        x: ``[tokens, width]`` float32.

    Returns:
        ``[tokens, bytes]`` uint8, two codes of 4 bits in one, and ``[tokens, groups, 2]`` bfloat16.
    """
    if x.shape[1] % 2:
        raise ValueError(f"heads of odd width ({x.shape[1]}) can't be packed: leave bits out")
    grouped = x.unflatten(1, (-1, group_of(x.shape[1])))
    (least, smallest), (largest, greatest) = grouped.min(-1), grouped.max(-1)
    bounds = torch.stack([least, largest], dim=-1).to(BOUNDS)
    low, high = bounds.float().split(1, dim=-1)
    most = 2**bits - 1
    codes = ((grouped - low) / (high - low).clamp_min(1e-30) * most).round_().clamp_(0, most)
    # both bounds are attained however they were rounded, so that packing again finds the same
    codes.scatter_(-1, greatest[..., None], most).scatter_(-1, smallest[..., None], 0)
    codes = (codes * (high > low)).flatten(1).byte()
    return (codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4), bounds


def decode(codes: Tensor, bounds: Tensor, bits: int) -> Tensor:
    """``[tokens, width]`` float32, from what `encode` made of it."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
    low, high = bounds.float().split(1, dim=-1)
    grouped = codes.unflatten(1, (bounds.shape[1], -1)).float()
    return torch.addcmul(low, grouped, (high - low) / (2**bits - 1)).flatten(1)


def group_of(width: int) -> int:
    """Channels of a group: all groups are equally large."""
    return next(size for size in range(min(GROUP, width), 0, -1) if width % size == 0)


@dataclass
class Packing:
    """How a row packs.

    Attributes:
        bits: of a number, 4 or 8.
        frame: centre and size of each channel of each head's keys, ``[2, heads, width]`` float32; None before anything
            was packed.
    """

    bits: int
    frame: Tensor | None = None

    def pack(
        self,
        heads: Sequence[Mapping[str, Tensor]],
        state: Mapping[str, Column],
        before: Packed | None = None,
        stay: Sequence[Tensor] = (),
    ) -> Packed:
        """Pack tokens.

        Args:
            heads: columns of the tokens of each, see `TokenStore.head`.
            state: see `TokenStore`.
            before: of which the first tokens are, see `stay`.
            stay: of each head the indices ``[n]`` int64 of those tokens in `before`, whose codes they keep.
        """
        if self.frame is None and all(len(own["positions"]) for own in heads):
            self.frame = torch.stack([frame_of(own["keys"]) for own in heads], dim=1)
        counts = [len(own) for own in stay] if before is not None else [0] * len(heads)
        columns = {}
        for name in KV:
            parts = []
            for head, (own, old) in enumerate(zip(heads, counts, strict=True)):
                if before is not None and old:
                    parts.append([column.index_select(0, stay[head]) for column in before.coded(head, name)])
                parts.append(list(encode(turned(self._centred(name, head, own[name][old:].float())), self.bits)))
            columns[name], columns[f"{name} bounds"] = (torch.cat(column) for column in zip(*parts, strict=True))
        for name in heads[0].keys() - set(KV):
            whole = torch.cat([own[name] for own in heads])
            columns[name] = to_byte(whole, state[name].bounds) if is_bounded(state, name) else whole
        sinks = [own["positions"] < SINKS for own in heads]
        for name in KV:
            columns[f"sink {name}"] = torch.cat([own[name][at] for own, at in zip(heads, sinks, strict=True)])
        lengths = [len(own["positions"]) for own in heads], [int(at.sum()) for at in sinks]
        return Packed(self.bits, heads[0]["keys"].dtype, *lengths, columns, self.frame, state)

    def _centred(self, name: str, head: int, x: Tensor) -> Tensor:
        if name != "keys" or self.frame is None:
            return x
        centre, size = self.frame[:, head]
        return (x - centre) / size


def packing_of(bits: int | None) -> Packing | None:
    """Of a row that has packed nothing; None: it never does."""
    return None if bits is None else Packing(bits)


def frame_of(x: Tensor) -> Tensor:
    """Centre of each channel and the root of its deviation, ``[2, width]`` float32, of ``[tokens, width]``."""
    x = x.float()
    return torch.stack([x.mean(0), x.std(0, correction=0).clamp_min(1e-6).sqrt()])


def turned(x: Tensor) -> Tensor:
    """``[tokens, width]`` times a Hadamard matrix for every block of channels, which is its own inverse."""
    block = x.shape[1] & -x.shape[1]  # the largest power of two in it
    return (x.unflatten(1, (-1, block)) @ hadamard(block, x.device)).flatten(1)


@lru_cache(maxsize=16)
def hadamard(size: int, device: torch.device) -> Tensor:
    """``[size, size]`` float32, symmetric and orthogonal; the size is a power of two."""
    with torch.inference_mode(False):
        found = torch.ones(1, 1, device=device)
        while len(found) < size:
            found = torch.cat([torch.cat([found, found], dim=1), torch.cat([found, -found], dim=1)]) * 0.5**0.5
        return found


def is_bounded(state: Mapping[str, Column], name: str) -> bool:
    """Whether a column of the policy's goes into bytes."""
    return name in state and state[name].bounds is not None


def to_byte(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Numbers as uint8, evenly between bounds."""
    assert bounds is not None
    return ((x.float() - bounds[0]) * (255 / (bounds[1] - bounds[0]))).round_().clamp_(0, 255).byte()


def from_byte(codes: Tensor, column: Column) -> Tensor:
    """From what `to_byte` made of a column."""
    assert column.bounds is not None
    low, high = column.bounds
    return (low + codes.float() * ((high - low) / 255)).to(column.dtype)


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
    _open: list[dict[tuple[int, str], Tensor]] = field(default_factory=list, repr=False, compare=False)

    @property
    def heads(self) -> int:
        return len(self.lengths)

    def coded(self, head: int, name: str) -> tuple[Tensor, Tensor]:
        """Codes and bounds of a head's keys or values."""
        first = sum(self.lengths[:head])
        held = slice(first, first + self.lengths[head])
        return self.columns[name][held], self.columns[f"{name} bounds"][held]

    def column(self, head: int, name: str) -> Tensor:
        """A column of a head's tokens, unpacked."""
        if name not in KV:
            first = sum(self.lengths[:head])
            found = self.columns[name][first : first + self.lengths[head]]
            return from_byte(found, self.state[name]) if is_bounded(self.state, name) else found
        return self._unpacked(head, name)[: self.lengths[head]]

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

    def _unpacked(self, head: int, name: str) -> Tensor:
        """Keys or values of a head, free slots behind them, see `round_up`; not to be written to."""
        if self._open and (head, name) in self._open[-1]:
            return self._open[-1][head, name]
        found = turned(decode(*self.coded(head, name), self.bits))
        if name == "keys" and self.frame is not None:
            centre, size = self.frame[:, head]
            found = torch.addcmul(centre, found, size)
        found, first = found.to(self.dtype), sum(self.sinks[:head])
        found[: self.sinks[head]] = self.columns[f"sink {name}"][first : first + self.sinks[head]]
        found = F.pad(found, (0, 0, 0, round_up(len(found)) - len(found)))
        if self._open:
            self._open[-1][head, name] = found
        return found

    def head(self, head: int) -> dict[str, Tensor]:
        """A head's tokens, unpacked, oldest first; not to be written to."""
        names = [name for name in self.columns if not name.startswith("sink ") and not name.endswith(" bounds")]
        return {name: self.column(head, name) for name in names}

    def own(self) -> TokenStore:
        """A store with the same tokens, unpacked."""
        return TokenStore.of([self.head(head) for head in range(self.heads)], self.state)

    def nbytes(self, *names: str) -> int:
        """Bytes of the named columns with all that belongs to them (all if none is named)."""
        found = dict(self.columns) | ({} if self.frame is None else {"frame keys": self.frame})
        return sum(column.nbytes for key, column in found.items() if not names or set(key.split()) & set(names))

    def least_bytes(self) -> int:
        """Bytes that keys and values need."""
        return self.nbytes(*KV)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for head in range(self.heads):
            positions = self.column(head, "positions")
            assert bool((positions.diff() > 0).all()), f"head {head}: positions do not rise"
        for name, column in self.columns.items():
            wanted = sum(self.sinks) if name.startswith("sink ") else sum(self.lengths)
            assert len(column) == wanted, f"column {name!r} has {len(column)} tokens, expected {wanted}"
            assert column.untyped_storage().nbytes() == column.nbytes, f"{name!r} is a view"
