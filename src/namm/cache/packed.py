"""Keys and values of few bits: of every token, whole numbers between the bounds of each group of its channels.

    code = round((x - low) / (high - low) * (2^bits - 1))

asymmetrically and token by token, as KIVI (arXiv 2402.02750) has it for values. Keys differ more from channel to
channel than from token to token; so that a token's channels may share bounds, each channel of a head is first brought
to one centre and one size, as SmoothAttention does (QServe, arXiv 2405.04532): those of the first tokens that the row
packed. A token that is unpacked and packed again has the same codes, whatever is forgotten around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.cache.storage import TokenStore
from namm.support.tensors import Column

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
        frames: of keys and of values, centre and size of each channel of each head, ``[2, heads, width]`` float32;
            empty before anything was packed.
    """

    bits: int
    frames: Mapping[str, Tensor]

    def pack(self, heads: Sequence[Mapping[str, Tensor]], state: Mapping[str, Column]) -> Packed:
        """Of each head the columns of its tokens, see `TokenStore.head`."""
        if not self.frames and all(len(own["positions"]) for own in heads):
            self.frames = {name: torch.stack([frame_of(own[name]) for own in heads], dim=1) for name in KV}
        columns = {name: torch.cat([own[name] for own in heads]) for name in heads[0] if name not in KV}
        lengths = [len(own["positions"]) for own in heads]
        sinks = [own["positions"] < SINKS for own in heads]
        columns |= {
            f"sink {name}": torch.cat([own[name][at] for own, at in zip(heads, sinks, strict=True)]) for name in KV
        }
        for name in KV:
            columns[name], columns[f"{name} bounds"] = encode(
                torch.cat([self._inside(name, head, own[name].float()) for head, own in enumerate(heads)]), self.bits
            )
        counts = [int(at.sum()) for at in sinks]
        return Packed(self.bits, heads[0]["keys"].dtype, lengths, counts, columns, dict(self.frames), state)

    def _inside(self, name: str, head: int, x: Tensor) -> Tensor:
        """What is coded: channels brought to one centre and size."""
        if not self.frames:
            return x
        centre, size = self.frames[name][:, head]
        return (x - centre) / size


def packing_of(bits: int | None) -> Packing | None:
    """Of a row that has packed nothing; None: it never does."""
    return None if bits is None else Packing(bits, {})


def frame_of(x: Tensor) -> Tensor:
    """Centre and size of each channel, ``[2, width]`` float32, of ``[tokens, width]``."""
    x = x.float()
    centre = x.mean(0)
    return torch.stack([centre, (x - centre).abs().amax(0).clamp_min(1e-6)])


@dataclass(frozen=True)
class Packed:
    """Tokens as a `TokenStore` has them, with few bits for keys and values; read only, without free slots.

    Attributes:
        bits: see `Packing`.
        dtype: of keys and values when they are unpacked.
        lengths: tokens of each head.
        sinks: of these, how many at its beginning are exact.
        columns: one head's behind the other's: codes of "keys" and "values", their bounds, exact ones of sinks, and all
            others as they are.
        frames: see `Packing`.
        state: see `TokenStore`.
    """

    bits: int
    dtype: torch.dtype
    lengths: list[int]
    sinks: list[int]
    columns: Mapping[str, Tensor]
    frames: Mapping[str, Tensor]
    state: Mapping[str, Column]

    @property
    def heads(self) -> int:
        return len(self.lengths)

    def column(self, head: int, name: str) -> Tensor:
        """A column of a head's tokens, unpacked."""
        first = sum(self.lengths[:head])
        held = slice(first, first + self.lengths[head])
        if name not in KV:
            return self.columns[name][held]
        found = decode(self.columns[name][held], self.columns[f"{name} bounds"][held], self.bits)
        if self.frames:
            centre, size = self.frames[name][:, head]
            found = torch.addcmul(centre, found, size)
        found, first = found.to(self.dtype), sum(self.sinks[:head])
        found[: self.sinks[head]] = self.columns[f"sink {name}"][first : first + self.sinks[head]]
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
        found = [(key, column) for key, column in self.columns.items()]
        found += list(self.frames.items())
        return sum(column.nbytes for key, column in found if not names or set(key.split()) & set(names))

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
