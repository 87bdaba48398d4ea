"""The engine for GPUs: all heads and batch rows of a layer in one ragged store, and a few kernels a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm, infinite
from namm.cache.batched import Batched
from namm.cache.engine import RowState
from namm.cache.ragged.attending import FEW, attend
from namm.cache.ragged.launching import check_device, to_device
from namm.cache.ragged.observing import normalise, observe
from namm.cache.ragged.ring import Ring
from namm.cache.ragged.scoring import memory_scores, rule_scores
from namm.cache.ragged.selecting import Asked, Selected, bounds_of, select
from namm.cache.ragged.split import SplitRagged
from namm.cache.ragged.store import RaggedStore
from namm.cache.split_batch import nothing, packed_of
from namm.policies import NAMMPolicy
from namm.policies.base import BudgetPolicy
from namm.policies.pool import not_a_number


class Ragged(Batched):
    """All batch rows of a layer at once; see `namm.cache.engine.Engine`.

    Attributes:
        store: the tokens kept.
        ring: the newest queries; None for a policy that sees none.
        block: of each row, the tokens of the block that was observed last.
        stale: rows that forgot tokens which queries since their last update saw: the normalisers of these are those of
            more keys than are left.
    """

    store: RaggedStore | SplitRagged
    split = SplitRagged

    def _begin(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        check_device(keys.device)
        policy, rows, packing = self.policy, query.shape[0], self.packing
        self.store = RaggedStore(rows, keys, values, policy.state if packing is None else {})
        if packing is not None:
            self.store = SplitRagged(nothing(packing, keys, values, policy.state), self.store)
        self.query_heads, self.query_width = query.shape[1], query.shape[3]
        self.block = [0] * rows
        self.stale: set[int] = set()
        self.ring: Ring | None = None
        if policy.queries != 0:
            capacity = policy.carry + (policy.queries or policy.update_interval or 0)
            self.ring = Ring(query, keys.shape[1], policy.carry, capacity)

    def _room(self) -> list[int]:
        """Tokens of each row until its block is full."""
        interval = self.policy.update_interval or 0
        return [interval - fresh for fresh in self.fresh]

    def _advance(
        self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], form: AttentionForm, waits: bool
    ) -> Tensor:
        store, ring = self.store, self.ring
        store.make_room(self._room(), self.seen)
        store.append(query, keys, values, new, (keys, 0) if ring is None else (ring.queries, ring.capacity))
        ends = self._took(new, waits)
        if ends:
            store = self.own()
        how = query, new, form, ring
        output = store.attend(*how) if isinstance(store, SplitRagged) else attend(store, *how)
        if ends:
            self._observe(ends, form, whole=False)
        return output

    @property
    def _newest(self) -> RaggedStore:
        """Where new tokens go."""
        return self.store.since if isinstance(self.store, SplitRagged) else self.store

    def places(self) -> list[Tensor]:
        """What a step of decoding reads and writes until something is moved."""
        held = [self._newest.records, self._newest.table] if self.seen else []
        return held + ([self.ring.queries, self.ring.normalisers] if self.seen and self.ring is not None else [])

    def free(self) -> int:
        """Tokens until the first row's block is full; none where steps are not the same launches up to there."""
        if isinstance(self.store, SplitRagged) and self.query_heads // self.store.heads > FEW:
            return 0
        return min(self._room(), default=0)

    def repeated(self) -> None:
        """Count a token of every row that was stored by the launches of an earlier step."""
        self._took([1] * len(self.seen), waits=True)
        self._newest.lengths = [[length + 1 for length in row] for row in self._newest.lengths]

    def counts(self) -> tuple[list[int], list[list[int]]]:
        """How many tokens were seen and are held, for `recount`."""
        return self.seen, self._newest.lengths

    def recount(self, counts: tuple[list[int], list[list[int]]]) -> None:
        """Take back what was counted since then, and not stored."""
        self.seen, self._newest.lengths = counts

    def _observe(self, rows: list[int], form: AttentionForm, *, whole: bool) -> None:
        fresh, store = self.fresh[rows[0]], self.own()
        if self.ring is not None:
            if stale := sorted(self.stale.intersection(rows)):
                normalise(store, self.ring, stale, fresh, form)
            observe(self.policy, store, self.ring, rows, fresh, form)
        for row in rows:
            self.block[row] = fresh
        self.stale.difference_update(rows)
        self._observed(rows, whole)

    @staticmethod
    def decide(engines: Sequence[Ragged]) -> None:
        """Ask the policy at once about all heads that are due, of one or of all layers, and free what it lets go."""
        due = [engine for engine in engines if engine.due]
        if not due:
            return
        policy = due[0].policy
        assert isinstance(policy, NAMMPolicy | BudgetPolicy), "see `namm.cache.ragged.serves`"
        layers = [Asked.of(engine.own(), *engine._due_grid({})) for engine in due]
        places = policy.places([layer.grid for layer in layers])
        if places is None:
            for engine in due:
                engine._done()
            return
        bounds = to_device(bounds_of(layers, places), layers[0].store.device)
        ends, scores = 0, []
        for layer in layers:
            first, ends = ends, ends + layer.store.segments
            if isinstance(policy, NAMMPolicy):
                asked = bounds[0, first:ends]
                if layer.judged != layer.asked:
                    asked = to_device([layer.judged], layer.store.device)
                scores.append(memory_scores(policy, layer.store, asked.to(layer.store.device)))
            else:
                scores.append(rule_scores(policy, layer.store, layer.grid))
        selected = select(layers, scores, bounds, places)
        for engine, own in zip(due, selected, strict=True):
            engine._refuse(own)
        for engine, own in zip(due, selected, strict=True):
            engine._keep(own)

    def _keep(self, selected: Selected) -> None:
        """Forget what the policy let go."""
        store, room = self.own(), self._room()
        if self.packing is not None:
            room = [0] * len(room)  # for what is packed at once
        if selected.lengths == store.lengths:
            store.make_room(room, self.seen)
        else:
            store.move(selected.lengths, room, self.seen, selected.sources)
            self.stale.update(row for row in self.due if self.fresh[row])
        self._done()

    def _refuse(self, selected: Selected) -> None:
        """Raises ValueError, naming the place, for attention or scores that are no numbers."""
        for segment, health in enumerate(selected.health):
            row, head = divmod(segment, self.store.heads)
            if health & 1:
                raise infinite(self.layer, row, head, self.block[row], self.seen[row])
            if health:
                raise not_a_number(self.layer, head, *self.policy.judge)  # type: ignore[attr-defined]

    def _hide(self, gone: Tensor, before: Sequence[int]) -> list[int]:
        counts = [int(own[:seen].sum()) for own, seen in zip(gone, self.seen, strict=True)]
        fresh = [int(own[a:b].sum()) for own, a, b in zip(gone, self.updated, self.seen, strict=True)]
        if self.ring is not None:
            self.ring.hide(gone, self.seen, self.updated)
        self.stale.update(row for row, count in enumerate(counts) if count)
        room = [room + less for room, less in zip(self._room(), fresh, strict=True)]
        seen = [saw - count for saw, count in zip(self.seen, counts, strict=True)]
        lost: list[int] = self.own().hide(gone, before, room, seen)
        return lost

    def select(self, order: Sequence[int]) -> None:
        """Have the batch rows in another order; some may come more than once, or not at all."""
        self._select(order)
        self.block = [self.block[row] for row in order]
        self.stale = {number for number, row in enumerate(order) if row in self.stale}
        if isinstance(self.store, SplitRagged):
            self.store.select(order, self._room(), self.seen)
        else:
            self.store.move([self.store.lengths[row] for row in order], self._room(), self.seen, rows=order)
        if self.ring is not None:
            self.ring.select(torch.tensor(order))

    def states(self) -> list[RowState]:
        """What each row holds."""
        found = []
        for row, (seen, updated) in enumerate(zip(self.seen, self.updated, strict=True)):
            heads, packed = self._held(row)
            pending, carried, normalisers = (
                heads[0]["keys"].new_zeros(self.query_heads, 0, self.query_width),
                None,
                None,
            )
            if (ring := self.ring) is not None:
                pending, _ = ring.of(row, max(updated, seen - ring.capacity + ring.carry), seen)
                if ring.carry and updated:
                    carried, normalisers = ring.of(row, updated - ring.carry, updated)
            told = seen, updated, self.compared[row], self.hid[row]
            found.append(RowState(heads, pending, carried, normalisers, *told, packed))
        return found

    def restore(self, states: Sequence[RowState]) -> None:
        """Hold this and nothing else."""
        first = states[0]
        keys, values = (first.heads[0][name].expand(1, len(first.heads), -1, -1) for name in ("keys", "values"))
        self._begin(first.pending.expand(len(states), *first.pending.shape), keys, values)
        self._told(states)
        if isinstance(self.store, SplitRagged) and self.packing is not None:
            self.packing, self.store.held, since = packed_of(states, self.packing, self.policy.state)
            self.store.since.fill(since, self._room(), self.seen)
        elif isinstance(self.store, RaggedStore):
            self.store.fill([state.heads for state in states], self._room(), self.seen)
        for row, state in enumerate(states if self.ring is not None else ()):
            assert self.ring is not None
            unknown = state.pending.new_zeros(state.pending.shape[:2], dtype=torch.float32)
            self.ring.put(row, self.seen[row] - state.pending.shape[1], state.pending, unknown)
            if state.carried is not None and state.normalisers is not None:
                self.ring.put(row, self.updated[row] - state.carried.shape[1], state.carried, state.normalisers)
        self.stale = set(range(len(states)))

    def query_bytes(self) -> int:
        """Bytes of the queries that are held for a row."""
        return 0 if self.ring is None else self.ring.row_bytes()

    def check_queries(self, row: int, unfinished: int) -> None:
        """Raises AssertionError where queries of a row were lost, that many of which are needed."""
        assert not unfinished or (self.ring is not None and self.ring.capacity >= unfinished), "queries were lost"
