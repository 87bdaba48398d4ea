"""What a row holds, as it goes into a file and comes out of it."""

from __future__ import annotations

from dataclasses import replace

from namm.cache.engine import RowState
from namm.cache.packed import Packed
from namm.cache.packing import Packing, packing_of
from namm.cache.queries import Queries
from namm.cache.row import Row
from namm.cache.split import SplitStore
from namm.cache.storage import TokenStore
from namm.models.rope import Rotary
from namm.policies.base import Policy


def state_of(row: Row) -> RowState:
    """What a row holds; views where that is no work."""
    queries, store, packed = row.queries, row.store, None
    if isinstance(store, SplitStore) and isinstance(store.held, Packed):
        packed, store = store.held, store.since
    pending, heads = queries.slots[:, : queries.pending], [store.head(h) for h in range(store.heads)]
    told = row.seen, row.updated, row.compared, row.hid
    return RowState(heads, pending, queries.carried, queries.normalisers, *told, packed)


def row_of(
    state: RowState, policy: Policy, layer: int, index: int, rotary: Rotary | None, bits: int | None = None
) -> Row:
    """A row that goes on from what another held, with as many bits."""
    queries = Queries(state.pending.clone(), state.pending.shape[1], state.carried, state.normalisers)
    told, packing = (state.seen, state.updated, state.compared), packing_of(bits)
    row = Row(policy, layer, index, TokenStore.of(state.heads, policy.state), queries, *told)
    row.hid, row.rotary, row.packing = state.hid, rotary, packing
    if state.packed is not None:
        packed = replace(state.packed, state=policy.state)
        row.store = SplitStore(packed, TokenStore.of(state.heads, {}))
        assert packing is not None and packing.bits == state.packed.bits, "a file is read into a cache of its own bits"
        row.packing = Packing.after(packed)
    return row
