"""The tokens of all batch rows of a layer in two parts: those that are packed, and those that came since."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from namm.cache.engine import RowState
from namm.cache.packed import KV, Packed
from namm.cache.packing import Packing
from namm.support.tensors import Column

ORIGIN = "origin"  # of what is unpacked the column that says where its codes are, see `Packing.pack`
COLUMNS = (*KV, "positions")  # of tokens that came since


class SplitBatch(ABC):
    """What an engine for all batch rows holds between two updates, if it packs.

    The heads of all rows are numbered one row's behind the other's. A row's tokens since its last update are the same
    in each of its heads. What writes or decides takes `own`, and packs again afterwards, see `of`.

    Attributes:
        held: what is packed, of all heads of all rows; read only.
        since: a store of the engine's kind without the policy's columns.
        forked: other rows hold `held` as well.
    """

    def __init__(self, held: Packed, since: Any, forked: bool = False) -> None:
        self.held, self.since, self.forked = held, since, forked

    @classmethod
    def of(
        cls, store: Any, fresh: Sequence[int], packing: Packing, state: Mapping[str, Column], before: Packed | None
    ) -> Self:
        """Of what a store holds, all but so many of the newest tokens of each row packed.

        Args:
            state: the policy's columns.
            before: of which some were unpacked, see `own`.
        """
        decided = [[own - new for own in row] for row, new in zip(store.lengths, fresh, strict=True)]
        columns, since = cls.parted(store, decided, fresh)
        origins = columns.pop(ORIGIN, None)
        lengths = [own for row in decided for own in row]
        return cls(packing.pack(columns, lengths, state, before, origins), since)

    @staticmethod
    @abstractmethod
    def parted(store: Any, decided: Sequence[Sequence[int]], fresh: Sequence[int]) -> tuple[dict[str, Tensor], Any]:
        """Columns of the oldest tokens of each head, one head's behind the other's, and a store of the others.

        Args:
            decided: tokens of each head of each row that are the oldest. fresh: of each row, tokens that are not.
        """

    @abstractmethod
    def joined(self, older: Mapping[str, Tensor], state: Mapping[str, Column]) -> Any:
        """A store of all tokens.

        Args:
            older: columns of what is packed, one head's behind the other's.
            state: columns that it may have besides.
        """

    @property
    def device(self) -> torch.device:
        found: torch.device = self.since.device
        return found

    @property
    def heads(self) -> int:
        return len(self.since.lengths[0])

    @property
    def older(self) -> list[list[int]]:
        """Packed tokens of each head of each row."""
        heads, found = self.heads, self.held.lengths
        return [found[first : first + heads] for first in range(0, len(found), heads)]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of each head of each row."""
        return [
            [old + new for old, new in zip(*rows, strict=True)]
            for rows in zip(self.older, self.since.lengths, strict=True)
        ]

    def view(self) -> Any:
        """A store of all tokens to attend to, with keys, values and positions only; the other part, if one is empty."""
        return self.joined({name: self.held.flat(name) for name in COLUMNS}, {}) if self.held.tokens else self.since

    def own(self, state: Mapping[str, Column]) -> Any:
        """A store of all tokens to write to, unpacked, with the policy's columns and where the codes are."""
        held = self.held
        older = {name: held.flat(name) for name in held.names}
        older[ORIGIN] = torch.arange(1, held.tokens + 1, dtype=torch.int32, device=self.device)
        return self.joined(older, {**state, ORIGIN: Column((), torch.int32)})

    def head(self, row: int, head: int) -> dict[str, Tensor]:
        """A head's tokens, unpacked, oldest first; not to be written to."""
        held, new = self.held.head(row * self.heads + head), self.since.head(row, head)
        count = self.since.lengths[row][head]
        return {
            name: torch.cat([column, new[name] if name in new else column.new_zeros(count, *column.shape[1:])])
            for name, column in held.items()
        }

    def state(self, row: int) -> tuple[list[dict[str, Tensor]], Packed | None]:
        """For a file: a row's tokens that came since, of each head, and the packed ones, if there are any."""
        since = [self.since.head(row, head) for head in range(self.heads)]
        packed = self.held.select(self._segments(row)) if sum(self.older[row]) else None
        return [{name: own[name] for name in COLUMNS} for own in since], packed

    def row_columns(self, row: int) -> dict[str, Tensor]:
        """Columns of a row's tokens that came since, see the store's."""
        found: dict[str, Tensor] = self.since.row_columns(row)
        return found

    def row_bytes(self, row: int, *names: str) -> int:
        """Bytes of a row's slots of the named columns (all if none is named); what other rows hold as well counts."""
        new = [name for name in names if name in COLUMNS]
        since = self.since.row_bytes(row, *new) if new or not names else 0
        return int(since) + self.held.bytes_of(self._segments(row), *names)

    def shared_bytes(self, row: int) -> int:
        """Of these, what other rows hold as well."""
        return self.held.bytes_of(self._segments(row)) if self.forked else 0

    def least_bytes(self, row: int, token: int) -> int:
        """Bytes that a row's keys and values need, which take so many for a token that is not packed."""
        return self.held.bytes_of(self._segments(row), *KV) + sum(self.since.lengths[row]) * token

    def make_writable(self, state: bool = False) -> None:
        """See the store's."""
        self.since.make_writable()

    def check(self, seen: Sequence[int]) -> None:
        """Raises AssertionError where an invariant does not hold of rows that saw so much."""
        self.held.check()
        self.since.check(seen)
        for row, lengths in enumerate(self.since.lengths):
            assert len(set(lengths)) == 1, f"row {row}: heads have {lengths} tokens that came since"

    def _segments(self, row: int) -> range:
        return range(row * self.heads, (row + 1) * self.heads)


def nothing(packing: Packing, keys: Tensor, values: Tensor, state: Mapping[str, Column]) -> Packed:
    """No tokens yet of heads with keys and values like these, ``[rows, heads, n, width]``."""
    empty = {name: like.new_zeros(0, like.shape[-1]) for name, like in zip(KV, (keys, values), strict=True)}
    empty["positions"] = torch.zeros(0, dtype=torch.int32, device=keys.device)
    return packing.pack(empty, [0] * (keys.shape[0] * keys.shape[1]), state)


def packed_of(
    states: Sequence[RowState], packing: Packing, state: Mapping[str, Column]
) -> tuple[Packing, Packed, list[list[Mapping[str, Tensor]]]]:
    """What rows of a file hold: how they pack, what is packed of all of them, and the tokens since of each head.

    Args:
        packing: of rows that have packed nothing. state: the policy's columns.
    """
    parts: list[Packed] = []
    since: list[list[Mapping[str, Tensor]]] = []
    for own in states:
        fresh = own.seen - own.updated
        decided = [len(head["positions"]) - fresh if own.updated and own.packed is None else 0 for head in own.heads]
        each = list(zip(own.heads, decided, strict=True))
        since.append([{name: head[name][old:] for name in COLUMNS} for head, old in each])
        names = own.heads[0] if any(decided) else COLUMNS
        columns = {name: torch.cat([head[name][:old] for head, old in each]) for name in names}
        part = own.packed or Packing(packing.bits).pack(columns, decided, state)
        assert part.bits == packing.bits, "a file is read into a cache of its own bits"
        parts.append(part)
    full = max(parts, key=lambda part: len(part.columns))
    for number, part in enumerate(parts):
        if not part.tokens:  # it may lack columns
            empty = {name: column[:0] for name, column in full.columns.items()}
            parts[number] = Packed(part.bits, part.dtype, part.lengths, part.sinks, empty, None, state)
    held = Packed.joined(parts)
    held = Packed(held.bits, held.dtype, held.lengths, held.sinks, held.columns, held.frame, state)
    return Packing.after(held), held, since
