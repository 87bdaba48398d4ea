"""One batch row of a layer that holds all of them in one store, as others may ask for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from namm.cache.split_batch import SplitBatch

if TYPE_CHECKING:
    from namm.cache.batched import Batched


@dataclass(frozen=True)
class BatchedRow:
    """A view of one row; see `namm.cache.engine.HeldRow`."""

    engine: Batched
    index: int

    @property
    def store(self) -> BatchedRow:
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
        found: list[int] = self.engine.store.lengths[self.index]
        return found

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """``[slots, ...]`` with all slots of the row."""
        found: Mapping[str, Tensor] = self.engine.store.row_columns(self.index)
        return found

    def head(self, head: int) -> dict[str, Tensor]:
        """Views of a head's tokens, oldest first."""
        found: dict[str, Tensor] = self.engine.store.head(self.index, head)
        return found

    def room(self, tokens: int) -> int:
        """How many of so many new tokens fit into the running block."""
        interval = self.engine.policy.update_interval
        return tokens if interval is None else min(tokens, interval - self.fresh)

    def note(self, column: str, newest: Tensor) -> None:
        """Write to a column of the policy's what the newest tokens have, ``[KV heads, tokens]``."""
        self.engine.own().make_writable(state=True)
        for head, found in enumerate(newest):
            self.head(head)[column][-len(found) :] = found

    def nbytes(self, *names: str) -> int:
        """Bytes of this row's slots of the named columns (all if none is named)."""
        return int(self.engine.store.row_bytes(self.index, *names))

    def shared_bytes(self) -> int:
        """Of these, what other rows hold as well."""
        store = self.engine.store
        return store.shared_bytes(self.index) if isinstance(store, SplitBatch) else 0

    def token_bytes(self, *names: str) -> int:
        """Bytes of one token in the named columns."""
        columns = self.columns
        return sum(math.prod(columns[name].shape[1:]) * columns[name].element_size() for name in names)

    def least_bytes(self) -> int:
        """Bytes that keys and values of the tokens need at least."""
        store, token = self.engine.store, self.token_bytes("keys", "values")
        if isinstance(store, SplitBatch):
            return store.least_bytes(self.index, token)
        return sum(self.lengths) * token

    def query_bytes(self) -> int:
        """Bytes of the queries held."""
        return self.engine.query_bytes()

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        engine = self.engine
        assert not engine.due, f"rows {sorted(engine.due)} wait for a decision"
        if self.index == 0:
            engine.store.check(engine.seen)
        interval, limit = engine.policy.update_interval, engine.policy.queries
        unfinished = self.fresh if interval and limit != 0 else 0
        engine.check_queries(self.index, min(unfinished, limit or unfinished))
        for h, length in enumerate(self.lengths):
            positions = self.head(h)["positions"]
            newest = int(positions[-1]) if length else -1
            hid = engine.hid[self.index]
            assert newest < self.seen, f"head {h} holds token {newest} of {self.seen}"
            assert newest == self.seen - 1 or hid, f"head {h} lost its newest token"
            assert length >= self.fresh, f"head {h} lost tokens between updates"
