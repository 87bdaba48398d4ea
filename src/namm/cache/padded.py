"""The engine without a loop over heads or batch rows: plain PyTorch on any device, padded to the longest head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, refuse_infinite
from namm.cache.batched import Batched
from namm.cache.engine import RowState
from namm.cache.grid import FREE, GridStore, positions_of
from namm.cache.padded_attention import attend_padded, excluding_free
from namm.cache.padded_record import PaddedRecord
from namm.cache.pending import Pending
from namm.cache.split_batch import nothing, packed_of
from namm.cache.split_grid import SplitGrid
from namm.policies.grid import Grid, with_newest


class Padded(Batched):
    """All batch rows of a layer at once; see `namm.cache.engine.Engine`.

    Attributes:
        store: the tokens kept.
        pending: queries since the last update of each row.
    """

    store: GridStore | SplitGrid
    split = SplitGrid

    def _begin(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        state, packing = self.policy.state, self.packing
        self.store = GridStore(query.shape[0], keys, values, state if packing is None else {})
        if packing is not None:
            self.store = SplitGrid(nothing(packing, keys, values, state), self.store)
        self.pending = Pending.empty(query)

    def _advance(
        self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], form: AttentionForm, waits: bool
    ) -> Tensor:
        policy, tokens = self.policy, query.shape[2]
        interval = policy.update_interval
        self.store.append(keys, values, positions_of(self.seen, new, tokens, query.device), new)
        ends = self._took(new, waits)
        store = self.own() if ends else self.store
        store = store.view() if isinstance(store, SplitGrid) else store
        whole = bool(ends) and all(new[row] == interval for row in ends)
        looks = interval is not None and policy.queries != 0
        if looks and not (whole and len(ends) == len(new)):
            self.pending.remember(query, new, policy.queries or interval or tokens)
        record, excluded = None, excluding_free(store.columns["positions"], query.dtype)
        if looks and whole:
            watched = query if policy.queries is None else query[:, :, max(0, tokens - policy.queries) :]
            record = PaddedRecord.empty(store.columns["keys"], watched, policy.carry, excluded)
        into = (None, None) if record is None else record.into
        output = attend_padded(query, store.columns["keys"], store.columns["values"], store.end, form, excluded, *into)
        assert output is not None
        if ends:
            part = _part(ends, len(new), query.device)
            refuse_infinite(_of(output, part), keys.shape[1], self.layer, ends, dict(enumerate(self.seen)))
            self._observe(ends, form, None if record is None else record.of(part), whole=False)
        return output

    def states(self) -> list[RowState]:
        """What each row holds."""
        return [self._state(row) for row in range(len(self.seen))]

    def _state(self, row: int) -> RowState:
        pending, limit = self.pending, self.policy.queries
        held = min(self.fresh[row], self.fresh[row] if limit is None else limit)
        carried, normalisers = (None if each is None else each[row] for each in (pending.carried, pending.normalisers))
        queries = pending.newest(held if self.policy.update_interval else 0)[row]
        told = self.seen[row], self.updated[row], self.compared[row], self.hid[row]
        heads, packed = self._held(row)
        return RowState(heads, queries, carried, normalisers, *told, packed)

    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else."""
        if self.packing is None:
            self.store = GridStore.of([state.heads for state in states], self.policy.state)
        else:
            self.packing, held, since = packed_of(states, self.packing, self.policy.state)
            self.store = SplitGrid(held, GridStore.of(since, {}))
        self.pending = Pending.of(states)
        self._told(states)

    @staticmethod
    def decide(engines: Sequence[Padded]) -> None:
        """Ask the policy at once about all heads that are due, of one or of all layers, and free what it lets go."""
        due = [engine for engine in engines if engine.due]
        if not due:
            return
        policy: Any = due[0].policy
        answers = policy.select_grids([engine._asked() for engine in due])
        for engine, answer in zip(due, answers or [None] * len(due), strict=True):
            engine._keep(answer)

    def query_bytes(self) -> int:
        """Bytes of the queries that are held for a row."""
        return self.pending.row_bytes()

    def check_queries(self, row: int, unfinished: int) -> None:
        """Raises AssertionError where queries of a row were lost, that many of which are needed."""
        assert self.pending.held.pending >= unfinished, "queries were lost"

    def _hide(self, gone: Tensor, before: Sequence[int]) -> list[int]:
        lost: list[int] = self.own().hide(gone, before)
        self.pending.hide(gone, self.seen, self.updated)
        return lost

    def select(self, order: Sequence[int]) -> None:
        """Have the batch rows in another order; some may come more than once, or not at all."""
        rows = torch.tensor(order)
        self.store.select(rows)
        self.pending.select(rows)
        self._select(order)

    def _observe(
        self, rows: list[int], form: AttentionForm, record: PaddedRecord | None = None, *, whole: bool
    ) -> None:
        """Show the policy some rows, with equally many tokens since their last update, which ends their blocks.

        Args:
            record: of rows that were attended in one go; None: the queries held are replayed.
            whole: see `Head`.
        """
        policy, store, pending = self.policy, self.own(), self.pending
        store.make_writable(state=True)
        part = _part(rows, len(self.seen), store.columns["keys"].device)
        columns = {name: _of(column, part) for name, column in store.columns.items()}
        keys, positions = columns["keys"], columns["positions"]
        if policy.queries != 0:
            if record is None:
                watched = min(self.fresh[rows[0]], policy.queries or self.fresh[rows[0]])
                query = _of(pending.newest(watched), part)
                record = PaddedRecord.empty(keys, query, policy.carry, excluding_free(positions, keys.dtype))
                attend_padded(query, keys, None, store.end, form, record.excluded, *record.into)
            if policy.carry and pending.carried is not None and pending.normalisers is not None:
                asked = [self.updated[row] for row in rows]
                carried = _of(pending.carried, part), _of(pending.normalisers, part)
                record.replay(carried, keys, positions, form, asked)
        judge: Any = policy
        judge.observe_grid(self._grid(rows, columns), None if record is None else record.attention, store.end)
        if part is not None:
            for name in policy.state:
                store.columns[name].index_copy_(0, part, columns[name])
        if record is not None and record.normalisers is not None:
            pending.carry(record.last, record.normalisers, part)
        self._observed(rows, whole)
        if not any(self.fresh):
            pending.clear()

    def _asked(self) -> Grid:
        """What is due."""
        store = self.own()
        part = _part(sorted(self.due), len(self.seen), store.device)
        columns = {name: _of(column[:, :, : store.end], part) for name, column in store.columns.items()}
        grid, left_out = self._due_grid(columns)
        return grid.without(left_out) if any(left_out) else grid

    def _keep(self, answer: Tensor | None) -> None:
        """Forget what the policy let go of the rows that are due, ``[rows, heads, tokens]`` bool; None: nothing."""
        rows, store = sorted(self.due), self.own()
        if answer is not None:
            left_out = [self.due[row].left_out for row in rows]
            if any(left_out):
                answer = with_newest(answer, left_out, store.end, True)
            if len(rows) < len(self.seen):
                part = torch.tensor(rows, device=answer.device)
                answer = (store.columns["positions"][:, :, : store.end] != FREE).index_copy_(0, part, answer)
            store.keep(answer)
        self._done()


def _part(rows: Sequence[int], of: int, device: torch.device) -> Tensor | None:
    """Numbers of rows; None: all."""
    return None if len(rows) == of else torch.tensor(rows, device=device)


def _of(tensor: Tensor, part: Tensor | None) -> Tensor:
    return tensor if part is None else tensor.index_select(0, part)
