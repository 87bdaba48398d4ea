"""What a rule of retention is shown of the heads of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from namm.models.rope import Rotary


@dataclass
class Head:
    """One KV head of one layer and batch row at an update.

    Attributes:
        layer: index in the model.
        row: of the batch.
        index: of the KV head.
        columns: "keys" ``[tokens, width]`` as cached (rotated, if the model rotates), "values" ``[tokens, value
            width]``, "positions" ``[tokens]`` int32, the original ones, rising, the last the newest token's; and the
            policy's own columns ``[tokens, ...]``: write to these in place.
        seen: tokens of this row so far, ``positions[-1] + 1``.
        new: how many of the last tokens came since the previous update.
        undecided: how many of the last tokens are not up for decision and stay: those too few for a block that
            `Policy.observe` has not been shown, in a `MemoryCache.settle` that only trims.
        compared: when the heads of all layers were last decided on together: tokens seen then, and tokens that this
            layer's heads kept; None: never.
        whole: the heads of all layers are decided on at this moment, as in `MemoryCache.settle`; while a model reads,
            only those of one layer are.
        attention: ``[carry + queries, tokens]``, rows from the oldest query to the newest, mean over the query heads
            of the group (``[group, carry + queries, tokens]`` for a policy with ``per_query_head``); there only
            inside `Policy.observe`, None elsewhere and for a policy that asks for no attention.
        summary: what `Policy.observe` returned.
        queries: ``[group, n, width]``, those that `observe` may look at, as they are multiplied with the keys: turned
            by their positions, the last of which is the newest token's, and scaled; None as `attention` is, and for a
            policy without `sees_queries`.
        rotary: how the model turns them; for a policy with `sees_queries`.
    """

    layer: int
    row: int
    index: int
    columns: Mapping[str, Tensor]
    seen: int
    new: int
    attention: Tensor | None = None
    summary: Any = None
    queries: Tensor | None = None
    rotary: Rotary | None = None
    undecided: int = 0
    compared: tuple[int, int] | None = None
    whole: bool = True

    @property
    def keys(self) -> Tensor:
        return self.columns["keys"]

    @property
    def values(self) -> Tensor:
        return self.columns["values"]

    @property
    def positions(self) -> Tensor:
        return self.columns["positions"]

    @property
    def tokens(self) -> int:
        return self.positions.shape[0]

    def first(self, tokens: int) -> Head:
        """The head with its first `tokens` tokens only."""
        return replace(self, columns={name: column[:tokens] for name, column in self.columns.items()})


@dataclass(frozen=True)
class Segments:
    """The heads of one layer and batch row as they are stored, one segment of slots behind the other.

    Attributes:
        spans: of each head the slots that hold its tokens; those between are free, and zero in all that follows.
        columns: ``[slots, ...]``, of which those of a `Head` are views.
        attention: ``[carry + queries, slots]``, with a first dimension more for a policy with ``per_query_head``; None
            as `Head.attention` is.
    """

    spans: Sequence[slice]
    columns: Mapping[str, Tensor]
    attention: Tensor | None
