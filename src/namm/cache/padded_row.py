"""One batch row of a layer that holds all of them in one tensor, as others may ask for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from namm.cache.padded import Padded


@dataclass(frozen=True)
class PaddedRow:
    """A view of one row; see `namm.cache.engine.HeldRow`."""

    engine: Padded
    index: int

    @property
    def store(self) -> PaddedRow:
        return self

    @property
    def seen(self) -> int:
        return self.engine.seen[self.index]

    @property
    def updated(self) -> int:
        return self.engine.updated[self.index]

    @property
    def fresh(self) -> int:
        return self.seen - self.updated

    @property
    def undecided(self) -> int:
        return self.fresh if self.engine.policy.update_interval is not None else 0

    @property
    def heads(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> list[int]:
        return self.engine.store.lengths[self.index]

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """``[heads * slots, ...]``."""
        return {name: column[self.index].flatten(0, 1) for name, column in self.engine.store.columns.items()}

    def head(self, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first."""
        return self.engine.store.head(self.index, head)

    def room(self, tokens: int) -> int:
        """How many of so many new tokens fit into the running block."""
        interval = self.engine.policy.update_interval
        return tokens if interval is None else min(tokens, interval - self.fresh)

    def note(self, column: str, newest: Tensor) -> None:
        """Write to a column of the policy's what the newest tokens have, ``[KV heads, tokens]``."""
        store = self.engine.store
        store.make_writable(state=True)
        store.columns[column][self.index, :, store.end - newest.shape[1] : store.end] = newest

    def nbytes(self, *names: str) -> int:
        """Bytes of this row's slots of the named columns (all if none is named)."""
        columns = self.columns
        return sum(columns[name].numel() * columns[name].element_size() for name in names or columns)

    def shared_bytes(self) -> int:
        """Of these, what other rows hold as well: nothing."""
        return 0

    def token_bytes(self, *names: str) -> int:
        """Bytes of one token in the named columns."""
        columns = self.engine.store.columns
        return sum(math.prod(columns[name].shape[3:]) * columns[name].element_size() for name in names)

    def least_bytes(self) -> int:
        """Bytes that keys and values of the tokens need at least."""
        return sum(self.lengths) * self.token_bytes("keys", "values")

    def query_bytes(self) -> int:
        """Bytes of the queries held."""
        return self.engine.pending.row_bytes()

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        engine = self.engine
        assert not engine.due, f"rows {sorted(engine.due)} wait for a decision"
        if self.index == 0:
            engine.store.check()
        interval, limit = engine.policy.update_interval, engine.policy.queries
        unfinished = self.fresh if interval and limit != 0 else 0
        assert engine.pending.held.pending >= min(unfinished, limit or unfinished), "queries were lost"
        for h, length in enumerate(self.lengths):
            positions = self.head(h)["positions"]
            newest = int(positions[-1]) if length else -1
            hid = engine.hid[self.index]
            assert newest < self.seen, f"head {h} holds token {newest} of {self.seen}"
            assert newest == self.seen - 1 or hid, f"head {h} lost its newest token"
            assert length >= self.fresh, f"head {h} lost tokens between updates"
