"""The tokens of one batch row in two parts: those that nothing writes to, and those that came since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.cache.packed import KV, Packed, starts_of
from namm.cache.packing import Packing
from namm.cache.storage import TokenStore
from namm.support.tensors import Column, round_up


class SplitStore:
    """Tokens that are only read, since several rows hold them or they are packed, and a row's own that came since.

    New tokens cost their own memory only, until their row is decided on: what moves or writes takes `own`. Attributes
    and methods are those of a `TokenStore`.

    Attributes:
        held: read only.
        since: the tokens that came since, equally many of every head.
        forked: other rows hold `held` as well.
    """

    def __init__(self, held: TokenStore | Packed, since: TokenStore, forked: bool = False) -> None:
        self.held, self.since, self.forked = held, since, forked

    @classmethod
    def of(cls, held: TokenStore) -> SplitStore:
        """With nothing that came since."""
        return cls(held, TokenStore(held.heads, held.columns["keys"], held.columns["values"], {}))

    @classmethod
    def packed(
        cls,
        store: TokenStore,
        fresh: int,
        packing: Packing,
        state: Mapping[str, Column],
        before: Packed | None,
        kept: Sequence[Tensor],
    ) -> SplitStore:
        """Of what a store holds, all but so many of the newest tokens packed.

        Args:
            state: see `TokenStore`.
            before: of what was unpacked to be decided on the codes.
            kept: of each head the indices of the tokens that stayed.
        """
        heads = [store.head(h) for h in range(store.heads)]
        decided = [{name: column[: len(column) - fresh] for name, column in own.items()} for own in heads]
        since = [{name: own[name][len(own[name]) - fresh :] for name in (*KV, "positions")} for own in heads]
        columns = {name: torch.cat([own[name] for own in decided]) for name in decided[0]}
        lengths = [len(own["positions"]) for own in decided]
        origins = None
        if before is not None:
            stay = [own[own < most] for own, most in zip(kept, before.lengths, strict=True)]
            each = zip(stay, starts_of(before.lengths), lengths, strict=True)
            origins = torch.cat([F.pad(own + first + 1, (0, most - len(own))) for own, first, most in each])
        return cls(packing.pack(columns, lengths, state, before, origins), TokenStore.of(since, {}))

    @property
    def heads(self) -> int:
        return self.held.heads

    @property
    def lengths(self) -> list[int]:
        return [old + new for old, new in zip(self.held.lengths, self.since.lengths, strict=True)]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """See `TokenStore.append`."""
        self.since.append(keys, values, positions)

    def head(self, head: int) -> dict[str, Tensor]:
        """A head's tokens, oldest first; not to be written to."""
        held, new = self.held.head(head), self.since.head(head)
        count = self.since.lengths[head]
        if not count:
            return held
        return {
            name: torch.cat([column, new[name] if name in new else column.new_zeros(count, *column.shape[1:])])
            for name, column in held.items()
        }

    def segment(self, head: int, name: str) -> Tensor:
        """A head's slots in a column, free ones behind its tokens; not to be written to."""
        held, new = self.held.column(head, name), self.since.column(head, name)
        tokens = len(held) + len(new)
        return torch.cat([held, new, held.new_zeros(round_up(tokens) - tokens, *held.shape[1:])])

    def parts(self, head: int) -> list[tuple[Tensor, Tensor, int]]:
        """See `TokenStore.parts`: what is only read, which nothing copies, and what came since."""
        return [part for store in (self.held, self.since) for part in store.parts(head) if part[2]]

    def own(self) -> TokenStore:
        """A store with the same tokens that belongs to the row alone, and can be written to."""
        made, new = self.held.own(), [self.since.head(head) for head in range(self.heads)]
        if self.since.lengths[0]:
            keys, values = (torch.stack([each[name] for each in new]) for name in ("keys", "values"))
            made.append(keys, values, new[0]["positions"])
        return made

    def clone(self) -> SplitStore:
        return SplitStore(self.held, self.since.clone(), self.forked)

    def nbytes(self, *names: str) -> int:
        """See `TokenStore.nbytes`; what other rows hold as well counts."""
        return self.held.nbytes(*names) + self.since.nbytes(*(name for name in names if name in self.since.columns))

    def shared_bytes(self) -> int:
        """Of these, what other rows hold as well."""
        return self.held.nbytes() if self.forked else 0

    def token_bytes(self, *names: str) -> int:
        """See `TokenStore.token_bytes`."""
        return self.since.token_bytes(*names)

    def least_bytes(self) -> int:
        """See `TokenStore.least_bytes`."""
        return self.held.least_bytes() + self.since.least_bytes()

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        self.held.check()
        self.since.check()
        assert len(set(self.since.lengths)) == 1, f"heads have {self.since.lengths} tokens of their own"
