"""What the engine of plain PyTorch holds between two updates, if it packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from namm.cache.grid import FREE, GridStore
from namm.cache.split_batch import COLUMNS, SplitBatch
from namm.support.tensors import Column, round_up, runs


class SplitGrid(SplitBatch):
    """See `SplitBatch`; new tokens come in as in a `GridStore`."""

    since: GridStore

    @staticmethod
    def parted(
        store: GridStore, decided: Sequence[Sequence[int]], fresh: Sequence[int]
    ) -> tuple[dict[str, Tensor], GridStore]:
        """See `SplitBatch.parted`."""
        lengths = [own for row in store.lengths for own in row]
        starts = [number * store.slots + store.end - own for number, own in enumerate(lengths)]
        places = runs(starts, [own for row in decided for own in row], store.device)
        columns = {name: column.flatten(0, 2).index_select(0, places) for name, column in store.columns.items()}
        since = GridStore(len(fresh), store.columns["keys"], store.columns["values"], {})
        since.lengths = [[new] * len(row) for new, row in zip(fresh, decided, strict=True)]
        if newest := since.longest:
            from_, into = store.slots, round_up(newest + 1)
            numbers = range(len(lengths))
            new = [own for own in fresh for _ in decided[0]]
            places = runs([n * from_ + store.end - new[n] for n in numbers], new, store.device)
            others = runs([n * into + newest - new[n] for n in numbers], new, store.device)
            for name in COLUMNS:
                column = store.columns[name]
                made = column.new_full((*column.shape[:2], into, *column.shape[3:]), FREE if name == "positions" else 0)
                made.flatten(0, 2).index_copy_(0, others, column.flatten(0, 2).index_select(0, places))
                since.columns[name] = made
            since.end = newest
        return columns, since

    def joined(self, older: Mapping[str, Tensor], state: Mapping[str, Column]) -> GridStore:
        """See `SplitBatch.joined`."""
        since, lengths = self.since, self.lengths
        made = GridStore(len(lengths), since.columns["keys"], since.columns["values"], state)
        made.lengths = lengths
        made.end, newest = made.longest, since.longest
        slots = round_up(made.end + 1)
        new = [own for row in since.lengths for own in row]
        counts = self.held.lengths
        starts = [n * slots + made.end - new[n] - count for n, count in enumerate(counts)]
        places = runs(starts, counts, self.device)
        for name, column in older.items():
            like, free = (len(lengths), self.heads, slots, *column.shape[1:]), FREE if name == "positions" else 0
            full = column.new_full(like, free)
            if name in COLUMNS and newest:  # before tokens of rows that have fewer there are free slots
                full[:, :, made.end - newest : made.end] = since.columns[name][:, :, since.end - newest : since.end]
            full.flatten(0, 2).index_copy_(0, places, column)
            made.columns[name] = full
        return made

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, new: Sequence[int]) -> None:
        """See `GridStore.append`."""
        self.since.append(keys, values, positions, new)

    def select(self, order: Tensor) -> None:
        """Have the rows ``[rows]`` int64 in another order."""
        self.held = self.held.select([segment for row in order.tolist() for segment in self._segments(row)])
        self.since.select(order)
        self.forked = False
