"""What engines that take all batch rows of a layer at once have in common: when rows are due, what is asked then."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.batched_row import BatchedRow
from namm.cache.engine import RowState
from namm.cache.packed import Packed
from namm.cache.packing import packing_of
from namm.cache.split_batch import ORIGIN, SplitBatch
from namm.cache.taking import Taking
from namm.models.rope import Rotary
from namm.policies.base import Policy
from namm.policies.grid import Grid


@dataclass(frozen=True)
class Due:
    """A batch row that waits for a decision.

    Attributes:
        seen: tokens that its budget is reckoned by.
        left_out: how many of the newest tokens the policy is not shown.
        undecided: how many of those that it is shown stay.
    """

    seen: int
    left_out: int = 0
    undecided: int = 0


class Batched(ABC):
    """All batch rows of a layer at once; see `namm.cache.engine.Engine`.

    Attributes:
        store: the tokens kept.
        seen: of each row, as of a `Row`; so are `updated`, `compared` and `hid`.
        due: by row.
        packing: how tokens are packed once they are decided on; None: they are not.
        unpacked: of what is unpacked for a decision the codes.
        split: what holds packed tokens between two updates.
    """

    store: Any
    split: type[SplitBatch]

    def __init__(self, policy: Policy, layer: int, rotary: Rotary | None = None, bits: int | None = None) -> None:
        self.policy, self.layer = policy, layer
        self.packing = packing_of(bits)
        self.unpacked: Packed | None = None
        self.seen: list[int] = []
        self.due: dict[int, Due] = {}
        self.whole = self.decided = False

    @property
    def rows(self) -> list[BatchedRow]:
        """One for each batch row, none before the first tokens."""
        return [BatchedRow(self, index) for index in range(len(self.seen))]

    @property
    def fresh(self) -> list[int]:
        """Tokens of each row since its last update."""
        return [seen - updated for seen, updated in zip(self.seen, self.updated, strict=True)]

    def serve(
        self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor | None, form: AttentionForm, waits: bool
    ) -> Tensor:
        """Store and attend new tokens, and decide wherever a block ends."""
        rows, _, tokens, _ = query.shape
        if not self.seen:
            self._begin(query, keys, values)
            self.seen, self.updated, self.hid = [0] * rows, [0] * rows, [False] * rows
            self.compared: list[tuple[int, int] | None] = [None] * rows
        taking = Taking(rows, tokens, real, query.device)
        while taking.step([row.room(tokens) for row in self.rows]):
            new = taking.take(query), taking.take(keys), taking.take(values)
            taking.put(self._advance(*new, taking.new, form, waits))
            self.decided |= bool(self.due)
            self.decide([self])
        return taking.output()

    @abstractmethod
    def _begin(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        """Be ready for tokens like these."""

    @abstractmethod
    def _advance(
        self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], form: AttentionForm, waits: bool
    ) -> Tensor:
        """Store and attend new tokens, ``[rows, heads, n, width]`` each, of which each row's last `new` are some."""

    def own(self) -> Any:
        """The store, its tokens unpacked, as whoever writes to it or decides needs it."""
        if isinstance(self.store, SplitBatch):
            self.unpacked, self.store = self.store.held, self.store.own(self.policy.state)
        return self.store

    def _pack(self) -> None:
        """Pack what is decided on, if that is wanted and it is not."""
        if self.packing is not None and not isinstance(self.store, SplitBatch):
            how = self.packing, self.policy.state
            self.store = self.split.of(self.store, self.fresh, *how, self.unpacked)
            self.unpacked = None

    def _held(self, row: int) -> tuple[Sequence[Mapping[str, Tensor]], Packed | None]:
        """For a file: of each head of a row the columns of the tokens that are not packed, and those that are."""
        if isinstance(self.store, SplitBatch):
            return self.store.state(row)
        heads = [self.store.head(row, head) for head in range(len(self.store.lengths[row]))]
        return [{name: column for name, column in own.items() if name != ORIGIN} for own in heads], None

    @abstractmethod
    def _observe(self, rows: list[int], form: AttentionForm, *, whole: bool) -> None:
        """Show the policy some rows, with equally many tokens since their last update, which ends their blocks.

        Args:
            whole: see `Head`.
        """

    @staticmethod
    @abstractmethod
    def decide(engines: Any) -> None:
        """Ask the policy at once about all heads that are due, of one or of all layers, and free what it lets go."""

    @abstractmethod
    def states(self) -> list[RowState]:
        """What each row holds."""

    @abstractmethod
    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else."""

    def _told(self, states: Sequence[RowState]) -> None:
        for name in ("seen", "updated", "hid", "compared"):
            setattr(self, name, [getattr(state, name) for state in states])

    @abstractmethod
    def query_bytes(self) -> int:
        """Bytes of the queries that are held for a row."""

    @abstractmethod
    def check_queries(self, row: int, unfinished: int) -> None:
        """Raises AssertionError where queries of a row were lost, that many of which are needed."""

    def _took(self, new: Sequence[int], waits: bool) -> list[int]:
        """Count new tokens; the rows whose block they end."""
        self.seen = [seen + count for seen, count in zip(self.seen, new, strict=True)]
        interval = self.policy.update_interval
        return [row for row, fresh in enumerate(self.fresh) if new[row] and fresh == interval and not waits]

    def settle(self, form: AttentionForm, rows: Sequence[int] | None) -> None:
        """End the block of some rows (None: all) here; what is then due, `decide` asks about."""
        policy = self.policy
        if policy.update_interval is None:
            return
        lengths: dict[int, list[int]] = {}
        for row in range(len(self.seen)) if rows is None else rows:
            fresh = self.fresh[row]
            if fresh >= max(1, policy.smallest_block):
                lengths.setdefault(fresh, []).append(row)
            elif policy.trims and self.updated[row] and (self.compared[row] or (0, 0))[0] != self.seen[row]:
                self.due[row], self.whole = Due(self.seen[row], undecided=fresh), True
        for together in lengths.values():
            self._observe(together, form, whole=True)

    def trim(self) -> None:
        """All that was decided on before is due again."""
        self.whole = True
        for row, (updated, fresh) in enumerate(zip(self.updated, self.fresh, strict=True)):
            if updated:
                self.due[row] = Due(updated, left_out=fresh)

    def under(self, policy: Policy) -> Any:
        """A copy whose rows go on under another policy; what is packed is shared, until one of the two packs anew."""
        shared: dict[int, Any] = {id(self.policy): policy}
        if isinstance(self.store, SplitBatch):
            self.store.forked, shared[id(self.store.held)] = True, self.store.held
        return copy.deepcopy(self, shared)

    def hide(self, hidden: Sequence[Tensor]) -> None:
        """Forget the tokens at these positions of each row, as if they had never come; those after them move up."""
        self.own()
        gone = torch.zeros(len(hidden), max(self.seen) + 1, dtype=torch.bool, device=self.store.device)
        for row, own in enumerate(hidden):
            gone[row, own.long()] = True
        lost = self._hide(gone, [compared[0] if compared else 0 for compared in self.compared])
        for row, (own, count, compared) in enumerate(zip(hidden, lost, self.compared, strict=True)):
            if compared is not None:
                self.compared[row] = compared[0] - int((own < compared[0]).sum()), compared[1] - count
            self.updated[row] -= int((own < self.updated[row]).sum())
            self.seen[row] -= len(own)
            self.hid[row] |= bool(len(own))
        self._pack()

    @abstractmethod
    def _hide(self, gone: Tensor, before: Sequence[int]) -> list[int]:
        """Forget tokens and queries at the positions that are gone, ``[rows, positions]`` bool.

        Args:
            before: a position for each row.

        Returns:
            How many tokens of each row's heads in all were gone before that position.
        """

    def _select(self, order: Sequence[int]) -> None:
        if self.packing is not None:
            heads = len(self.packing.framed) // len(self.seen)
            self.packing.select([head for row in order for head in range(row * heads, (row + 1) * heads)])
        for name in ("seen", "updated", "hid", "compared"):
            setattr(self, name, [getattr(self, name)[row] for row in order])

    def _observed(self, rows: Sequence[int], whole: bool) -> None:
        """Some rows wait for a decision, having been observed."""
        for row in rows:
            self.updated[row] = self.seen[row]
            self.due[row] = Due(self.seen[row])
        self.whole = whole

    def _grid(self, rows: Sequence[int], columns: Mapping[str, Tensor]) -> Grid:
        """Some rows as their policy sees them, with these columns of theirs."""
        return Grid(
            self.layer,
            rows,
            columns,
            [self.store.lengths[row] for row in rows],
            [self.seen[row] for row in rows],
            [self.fresh[row] for row in rows],
            [0] * len(rows),
            [self.compared[row] for row in rows],
            False,
        )

    def _due_grid(self, columns: Mapping[str, Tensor]) -> tuple[Grid, list[int]]:
        """The rows that are due, with these columns of theirs, and how many of their newest tokens are left out."""
        rows = sorted(self.due)
        due = [self.due[row] for row in rows]
        grid = replace(
            self._grid(rows, columns),
            seen=[one.seen for one in due],
            undecided=[one.undecided for one in due],
            whole=self.whole,
        )
        return grid, [one.left_out for one in due]

    def _done(self) -> None:
        """What was due is decided."""
        for row in sorted(self.due) if self.whole else ():
            lengths = self.store.lengths[row]
            self.compared[row] = self.updated[row], sum(lengths) - len(lengths) * self.fresh[row]
        self.due = {}
        self._pack()
