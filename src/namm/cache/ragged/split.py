"""What the engine of kernels holds between two updates, if it packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.ragged.attending import are_few, attend
from namm.cache.ragged.launching import to_device
from namm.cache.ragged.ring import Ring
from namm.cache.ragged.store import BASES, ENDS, GAPS, HEALTH, RaggedStore
from namm.cache.split_batch import COLUMNS, SplitBatch
from namm.support.tensors import Column, round_up, runs, writable


class SplitRagged(SplitBatch):
    """See `SplitBatch`; new tokens come in as in a `RaggedStore`."""

    since: RaggedStore

    @staticmethod
    def parted(
        store: RaggedStore, decided: Sequence[Sequence[int]], fresh: Sequence[int]
    ) -> tuple[dict[str, Tensor], RaggedStore]:
        """See `SplitBatch.parted`."""
        older, new = [own for row in decided for own in row], [own for own in fresh for _ in decided[0]]
        places = runs(store.starts, older, store.device)
        columns = {name: column.index_select(0, places) for name, column in store.columns.items()}
        since = _store(store, [[own] * store.heads for own in fresh], older, {})
        begins = [start + old for start, old in zip(store.starts, older, strict=True)]
        _copy(store, begins, since, since.starts, new)
        return columns, since

    def joined(self, older: Mapping[str, Tensor], state: Mapping[str, Column]) -> RaggedStore:
        """See `SplitBatch.joined`."""
        since, counts = self.since, self.held.lengths
        made = _store(since, self.lengths, [-count for count in counts], state)
        places = runs(made.starts, counts, self.device)
        for name, column in older.items():
            made.column(name).index_copy_(0, places, column)
        begins = [start + old for start, old in zip(made.starts, counts, strict=True)]
        _copy(since, since.starts, made, begins, since.flat_lengths)
        return made

    def attend(self, query: Tensor, new: Sequence[int], form: AttentionForm, ring: Ring | None) -> Tensor:
        """See `namm.cache.ragged.attending.attend`; few queries attend to what is packed as it is."""
        if self.held.tokens and are_few(query, self.heads):
            return attend(self.since, query, new, form, ring, self.held)
        store = self.view()
        output = attend(store, query, new, form, ring)
        if store is not self.since:  # what the kernels note there
            table = self.since.table = writable(self.since.table)
            table[BASES], table[HEALTH] = table[ENDS], store.table[HEALTH]
        return output

    def append(self, query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], ring: tuple[Tensor, int]) -> None:
        """See `RaggedStore.append`."""
        self.since.append(query, keys, values, new, ring)

    def make_room(self, tokens: Sequence[int], seen: Sequence[int]) -> None:
        """See `RaggedStore.make_room`."""
        self.since.make_room(tokens, seen)

    def select(self, order: Sequence[int], room: Sequence[int], seen: Sequence[int]) -> None:
        """Have the batch rows in another order; of room and seen see `RaggedStore.move`."""
        self.held = self.held.select([segment for row in order for segment in self._segments(row)])
        self.since.move([self.since.lengths[row] for row in order], room, seen, rows=order)
        self.forked = False


def _store(
    like: RaggedStore, lengths: Sequence[Sequence[int]], gaps: Sequence[int], state: Mapping[str, Column]
) -> RaggedStore:
    """A store for so many tokens, which all are yet to be filled in.

    Args:
        gaps: by how much those of each segment differ from what they are in the other store.
    """
    keys, values = (like.column(name).expand(1, like.heads, -1, -1) for name in ("keys", "values"))
    made = RaggedStore(len(lengths), keys, values, state)
    made.lengths = [list(row) for row in lengths]
    made.capacities = [round_up(own) for own in made.flat_lengths]
    ends = [0, *accumulate(made.capacities)]
    made.starts = ends[:-1]
    made.records = torch.zeros(ends[-1], made.record, dtype=torch.uint8, device=like.device)
    flat = made.flat_lengths
    made.table = to_device([made.starts, flat, flat, gaps, [0] * len(flat)], like.device)
    made.table[GAPS : HEALTH + 1] += like.table[GAPS : HEALTH + 1]
    return made


def _copy(
    store: RaggedStore, begins: Sequence[int], into: RaggedStore, starts: Sequence[int], counts: Sequence[int]
) -> None:
    """Copy so many tokens of each segment from one place to another."""
    source, places = runs(begins, counts, store.device), runs(starts, counts, store.device)
    for name in COLUMNS:
        into.column(name).index_copy_(0, places, store.column(name).index_select(0, source))
