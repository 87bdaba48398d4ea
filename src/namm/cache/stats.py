"""What a cache holds, counted from its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from namm.cache.layer import MemoryLayer


@dataclass(frozen=True)
class CacheStats:
    """All sizes are bytes of storage really allocated, free slots included, except `full_bytes`.

    Attributes:
        seen: real tokens seen, for each batch row.
        undecided: of these, how many came since the last decision, and are all kept.
        kept: tokens kept, ``kept[layer][row][head]``; one entry for each layer that forgets.
        layers: index in the model of each of those layers.
        kv_bytes: keys and values of the layers that forget.
        logical_kv_bytes: what the kept tokens' keys and values need at least.
        state_bytes: the policy's state and the positions.
        query_bytes: queries held for the unfinished block, and those carried over from the last one.
        shared_bytes: of all these, what is one storage with that of caches on the other side of a `MemoryCache.fork`;
            every one of them counts it.
        other_bytes: what the other layers hold (sliding windows, the states of linear attention).
        full_bytes: keys and values of all real tokens seen in the layers that forget, as a full cache would hold them.
    """

    seen: tuple[int, ...]
    undecided: tuple[int, ...]
    kept: tuple[tuple[tuple[int, ...], ...], ...]
    layers: tuple[int, ...]
    kv_bytes: int
    logical_kv_bytes: int
    state_bytes: int
    query_bytes: int
    shared_bytes: int
    other_bytes: int
    full_bytes: int

    @property
    def kept_tokens(self) -> float:
        """Mean tokens kept of a row, over layers and heads."""
        counts = [count for layer in self.kept for row in layer for count in row]
        return sum(counts) / len(counts) if counts else 0.0

    @property
    def kept_fraction(self) -> float:
        """Tokens kept over tokens seen, over all layers, rows and heads; 1.0 for an empty cache."""
        kept = sum(count for layer in self.kept for row in layer for count in row)
        seen = sum(seen * len(row) for layer in self.kept for seen, row in zip(self.seen, layer, strict=True))
        return kept / seen if seen else 1.0

    @property
    def kept_fractions(self) -> list[float]:
        """`kept_fraction` of each batch row; 1.0 for one that holds padding only."""
        rows = list(zip(*self.kept, strict=True))  # [row][layer][head]
        counts = [[count for layer in row for count in layer] for row in rows]
        return [sum(own) / (len(own) * seen) if seen else 1.0 for own, seen in zip(counts, self.seen, strict=True)]

    @property
    def held_bytes(self) -> int:
        """Everything the forgetting layers hold."""
        return self.kv_bytes + self.state_bytes + self.query_bytes

    def __str__(self) -> str:
        seen = "/".join(map(str, self.seen)) or "0"
        held, kv, state, queries, full = (
            f"{size / 2**20:.1f}"
            for size in (self.held_bytes, self.kv_bytes, self.state_bytes, self.query_bytes, self.full_bytes)
        )
        fresh = f", {'/'.join(map(str, self.undecided))} of them not decided on yet" if any(self.undecided) else ""
        return (
            f"seen {seen} tokens, kept {self.kept_tokens:.0f} ({self.kept_fraction:.1%}{fresh}); holds {held} MiB "
            f"(K and V {kv}, state {state}, queries {queries}) of {full} MiB for a full cache"
        )


def collect(layers: Sequence[object]) -> CacheStats:
    """Statistics of a cache's layers."""
    forgetting = [layer for layer in layers if isinstance(layer, MemoryLayer)]
    rows = [row for layer in forgetting for row in layer.rows]
    width = [row.store.token_bytes("keys", "values") for row in rows]
    return CacheStats(
        seen=tuple(row.seen for row in forgetting[0].rows) if forgetting else (),
        undecided=tuple(row.undecided for row in forgetting[0].rows) if forgetting else (),
        kept=tuple(tuple(tuple(row.store.lengths) for row in layer.rows) for layer in forgetting),
        layers=tuple(layer.index for layer in forgetting),
        kv_bytes=sum(row.store.nbytes("keys", "values") for row in rows),
        logical_kv_bytes=sum(row.store.least_bytes() for row in rows),
        state_bytes=sum(row.store.nbytes() - row.store.nbytes("keys", "values") for row in rows),
        query_bytes=sum(row.query_bytes() for row in rows),
        shared_bytes=sum(row.store.shared_bytes() for row in rows),
        other_bytes=sum(
            _bytes((getattr(layer, "keys", None), getattr(layer, "values", None), *_recurrent_states(layer)))
            for layer in layers
            if not isinstance(layer, MemoryLayer)
        ),
        full_bytes=sum(row.seen * row.store.heads * w for row, w in zip(rows, width, strict=True)),
    )


def _recurrent_states(layer: object) -> list[Tensor | None]:
    """The states of a linear-attention layer of transformers' own."""
    return [s for name in ("conv_states", "recurrent_states") for s in getattr(layer, name, {}).values()]


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)
