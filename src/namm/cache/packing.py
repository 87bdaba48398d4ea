"""How heads pack: a token is coded once. Unpacked it serves a decision, after which those that stay have the codes that
they had. Which channels a head's keys have is found in the first of its tokens that are packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm.cache.codes import encode, frames_of, no_frames, precise, to_byte, turned
from namm.cache.packed import CODES, KV, SINKS, Packed, is_bounded, owners, starts_of
from namm.support.tensors import Column, runs


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
