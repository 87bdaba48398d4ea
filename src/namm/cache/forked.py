"""The tokens of one batch row that goes on from what several share."""

from __future__ import annotations

import torch
from torch import Tensor

from namm.cache.storage import TokenStore
from namm.support.tensors import round_up


class ForkedStore:
    """Tokens of a store that several rows read and none writes, and one row's own that came since.

    New tokens cost their own memory only, until their row is decided on: what moves or writes takes `own`. Attributes
    and methods are those of a `TokenStore`.

    Attributes:
        shared: read only.
        since: the tokens that came since, equally many of every head.
    """

    def __init__(self, shared: TokenStore, since: TokenStore | None = None) -> None:
        columns = shared.columns
        self.shared = shared
        self.since = since or TokenStore(shared.heads, columns["keys"], columns["values"], {})

    @property
    def heads(self) -> int:
        return self.shared.heads

    @property
    def lengths(self) -> list[int]:
        return [old + new for old, new in zip(self.shared.lengths, self.since.lengths, strict=True)]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """See `TokenStore.append`."""
        self.since.append(keys, values, positions)

    def head(self, head: int) -> dict[str, Tensor]:
        """A head's tokens, oldest first; not to be written to."""
        held, new = self.shared.head(head), self.since.head(head)
        count = self.since.lengths[head]
        if not count:
            return held
        return {
            name: torch.cat([column, new[name] if name in new else column.new_zeros(count, *column.shape[1:])])
            for name, column in held.items()
        }

    def segment(self, head: int, name: str) -> Tensor:
        """A head's slots in a column, free ones behind its tokens; not to be written to."""
        held, new = self.shared.head(head)[name], self.since.head(head)[name]
        tokens = len(held) + len(new)
        return torch.cat([held, new, held.new_zeros(round_up(tokens) - tokens, *held.shape[1:])])

    def own(self) -> TokenStore:
        """A store with the same tokens that belongs to the row alone."""
        made, new = self.shared.clone(), [self.since.head(head) for head in range(self.heads)]
        if self.since.lengths[0]:
            keys, values = (torch.stack([each[name] for each in new]) for name in ("keys", "values"))
            made.append(keys, values, new[0]["positions"])
        return made

    def clone(self) -> ForkedStore:
        return ForkedStore(self.shared, self.since.clone())

    def nbytes(self, *names: str) -> int:
        """See `TokenStore.nbytes`; what is shared counts."""
        return self.shared.nbytes(*names) + self.since.nbytes(*(name for name in names if name in self.since.columns))

    def shared_bytes(self) -> int:
        """Of these, what is shared."""
        return self.shared.nbytes()

    def token_bytes(self, *names: str) -> int:
        """See `TokenStore.token_bytes`."""
        return self.shared.token_bytes(*names)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        self.shared.check()
        self.since.check()
        assert len(set(self.since.lengths)) == 1, f"heads have {self.since.lengths} tokens since they were forked"
