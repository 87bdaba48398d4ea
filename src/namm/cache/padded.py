"""The engine without a loop over heads or batch rows: plain PyTorch on any device, padded to the longest head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, refuse_infinite
from namm.cache.engine import RowState
from namm.cache.grid import FREE, GridStore, positions_of
from namm.cache.padded_attention import attend_padded, excluding_free
from namm.cache.padded_record import PaddedRecord
from namm.cache.padded_row import PaddedRow
from namm.cache.pending import Pending
from namm.cache.split import unpacked
from namm.cache.taking import Taking
from namm.models.rope import Rotary
from namm.policies.base import Policy
from namm.policies.grid import Grid, with_newest


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


class Padded:
    """All batch rows of a layer at once; see `namm.cache.engine.Engine`.

    Attributes:
        store: the tokens kept.
        pending: queries since the last update of each row.
        seen: of each row, as of a `Row`; so are `updated`, `compared` and `hid`.
        due: by row.
    """

    def __init__(self, policy: Policy, layer: int, rotary: Rotary | None = None) -> None:
        self.policy, self.layer = policy, layer
        self.seen: list[int] = []
        self.due: dict[int, Due] = {}
        self.whole = self.decided = False

    @property
    def rows(self) -> list[PaddedRow]:
        """One for each batch row, none before the first tokens."""
        return [PaddedRow(self, index) for index in range(len(self.seen))]

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
            self.store = GridStore(rows, keys, values, self.policy.state)
            self.pending = Pending.empty(query)
            self.seen, self.updated, self.hid = [0] * rows, [0] * rows, [False] * rows
            self.compared: list[tuple[int, int] | None] = [None] * rows
        taking = Taking(rows, tokens, real, query.device)
        while taking.step([row.room(tokens) for row in self.rows]):
            new = taking.take(query), taking.take(keys), taking.take(values)
            taking.put(self._advance(*new, taking.new, form, waits))
            self.decided |= bool(self.due)
            self.decide([self])
        return taking.output()

    def _advance(
        self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], form: AttentionForm, waits: bool
    ) -> Tensor:
        """Store and attend new tokens, ``[rows, heads, n, width]`` each, of which each row's last `new` are some."""
        policy, tokens, store = self.policy, query.shape[2], self.store
        interval = policy.update_interval
        store.append(keys, values, positions_of(self.seen, new, tokens, query.device), new)
        self.seen = [seen + count for seen, count in zip(self.seen, new, strict=True)]
        ends = [row for row, fresh in enumerate(self.fresh) if new[row] and fresh == interval and not waits]
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
            self._observe(together, form, None, whole=True)

    def trim(self) -> None:
        """All that was decided on before is due again."""
        self.whole = True
        for row, (updated, fresh) in enumerate(zip(self.updated, self.fresh, strict=True)):
            if updated:
                self.due[row] = Due(updated, left_out=fresh)

    def under(self, policy: Policy) -> Padded:
        """A copy whose rows go on under another policy."""
        return copy.deepcopy(self, {id(self.policy): policy})

    def states(self) -> list[RowState]:
        """What each row holds."""
        return [self._state(row) for row in range(len(self.seen))]

    def _state(self, row: int) -> RowState:
        pending, limit = self.pending, self.policy.queries
        held = min(self.fresh[row], self.fresh[row] if limit is None else limit)
        carried, normalisers = (None if each is None else each[row] for each in (pending.carried, pending.normalisers))
        queries = pending.newest(held if self.policy.update_interval else 0)[row]
        told = self.seen[row], self.updated[row], self.compared[row], self.hid[row]
        heads = [self.store.head(row, head) for head in range(len(self.store.lengths[row]))]
        return RowState(heads, queries, carried, normalisers, *told)

    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else; what was packed is unpacked."""
        self.store = GridStore.of([unpacked(state) for state in states], self.policy.state)
        self.pending = Pending.of(states)
        for name in ("seen", "updated", "hid", "compared"):
            setattr(self, name, [getattr(state, name) for state in states])

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

    def hide(self, hidden: Sequence[Tensor]) -> None:
        """Forget the tokens at these positions of each row, as if they had never come; those after them move up."""
        gone = torch.zeros(len(hidden), max(self.seen) + 1, dtype=torch.bool, device=self.store.columns["keys"].device)
        for row, own in enumerate(hidden):
            gone[row, own.long()] = True
        lost = self.store.hide(gone, [compared[0] if compared else 0 for compared in self.compared])
        self.pending.hide(gone, self.seen, self.updated)
        for row, (own, count, compared) in enumerate(zip(hidden, lost, self.compared, strict=True)):
            if compared is not None:
                self.compared[row] = compared[0] - int((own < compared[0]).sum()), compared[1] - count
            self.updated[row] -= int((own < self.updated[row]).sum())
            self.seen[row] -= len(own)
            self.hid[row] |= bool(len(own))

    def select(self, order: Sequence[int]) -> None:
        """Have the batch rows in another order; some may come more than once, or not at all."""
        rows = torch.tensor(order)
        self.store.select(rows)
        self.pending.select(rows)
        for name in ("seen", "updated", "hid", "compared"):
            setattr(self, name, [getattr(self, name)[row] for row in order])

    def _observe(self, rows: list[int], form: AttentionForm, record: PaddedRecord | None, *, whole: bool) -> None:
        """Show the policy some rows, with equally many tokens since their last update, which ends their blocks.

        Args:
            record: of rows that were attended in one go; None: the queries held are replayed.
            whole: see `Head`.
        """
        policy, store, pending = self.policy, self.store, self.pending
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
        for row in rows:
            self.updated[row] = self.seen[row]
            self.due[row] = Due(self.seen[row])
        self.whole = whole
        if not any(self.fresh):
            pending.clear()

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

    def _asked(self) -> Grid:
        """What is due."""
        rows, end = sorted(self.due), self.store.end
        due = [self.due[row] for row in rows]
        part = _part(rows, len(self.seen), self.store.columns["keys"].device)
        columns = {name: _of(column[:, :, :end], part) for name, column in self.store.columns.items()}
        grid = replace(
            self._grid(rows, columns),
            seen=[one.seen for one in due],
            undecided=[one.undecided for one in due],
            whole=self.whole,
        )
        left_out = [one.left_out for one in due]
        return grid.without(left_out) if any(left_out) else grid

    def _keep(self, answer: Tensor | None) -> None:
        """Forget what the policy let go of the rows that are due, ``[rows, heads, tokens]`` bool; None: nothing."""
        rows, store = sorted(self.due), self.store
        if answer is not None:
            left_out = [self.due[row].left_out for row in rows]
            if any(left_out):
                answer = with_newest(answer, left_out, store.end, True)
            if len(rows) < len(self.seen):
                part = torch.tensor(rows, device=answer.device)
                answer = (store.columns["positions"][:, :, : store.end] != FREE).index_copy_(0, part, answer)
            store.keep(answer)
        for row in rows if self.whole else ():
            kept = sum(store.lengths[row]) - len(store.lengths[row]) * self.fresh[row]
            self.compared[row] = self.updated[row], kept
        self.due = {}


def _part(rows: Sequence[int], of: int, device: torch.device) -> Tensor | None:
    """Numbers of rows; None: all."""
    return None if len(rows) == of else torch.tensor(rows, device=device)


def _of(tensor: Tensor, part: Tensor | None) -> Tensor:
    return tensor if part is None else tensor.index_select(0, part)
