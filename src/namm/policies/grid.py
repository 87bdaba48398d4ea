"""Decisions about many heads at once: one tensor for all heads of a layer and all batch rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.policies.head import Head
from namm.policies.pool import ROOM, SAFEGUARD, refuse_nan, share_alone
from namm.support.tensors import steps


@dataclass(frozen=True)
class Grid:
    """The heads of one layer and of some batch rows at an update, padded to one length, the newest token last.

    Attributes:
        layer: index in the model.
        rows: of the batch.
        columns: as of a `Head`, ``[rows, heads, tokens, ...]``; where a head has fewer tokens, the first ones are zero
            and at the position -1.
        lengths: tokens of each head of each row.
        seen: of each row, as of a `Head`; so are `new`, `undecided` and `compared`.
        whole: as of a `Head`.
    """

    layer: int
    rows: Sequence[int]
    columns: Mapping[str, Tensor]
    lengths: Sequence[Sequence[int]]
    seen: Sequence[int]
    new: Sequence[int]
    undecided: Sequence[int]
    compared: Sequence[tuple[int, int] | None]
    whole: bool

    @property
    def positions(self) -> Tensor:
        return self.columns["positions"]

    @cached_property
    def there(self) -> Tensor:
        """Which slots hold tokens, ``[rows, heads, tokens]`` bool."""
        return self.positions >= 0

    @property
    def heads(self) -> int:
        return self.positions.shape[1]

    @property
    def counts(self) -> Tensor:
        """`lengths` as ``[rows, heads]`` int64, at least 1."""
        return torch.tensor([[max(1, own) for own in row] for row in self.lengths], device=self.positions.device)

    def head(self, number: int) -> Head:
        """What a budget asks of any head of a row: all but its tokens."""
        return Head(
            self.layer,
            self.rows[number],
            0,
            {},
            self.seen[number],
            self.new[number],
            undecided=self.undecided[number],
            compared=self.compared[number],
            whole=self.whole,
        )

    def without(self, newest: Sequence[int]) -> Grid:
        """The grid without so many of the newest tokens of each row."""
        lengths = [[max(0, own - gone) for own in row] for row, gone in zip(self.lengths, newest, strict=True)]
        tokens = self.positions.shape[2]
        if len(set(newest)) == 1:
            columns = {name: column[:, :, : tokens - newest[0]] for name, column in self.columns.items()}
            return replace(self, columns=columns, lengths=lengths)
        source = steps(tokens, self.positions.device) - torch.tensor(newest, device=self.positions.device)[:, None]
        columns = {}
        for name, column in self.columns.items():
            index = source.view(len(newest), 1, tokens, *[1] * (column.ndim - 3))
            moved = column.gather(2, index.clamp_min(0).expand(-1, column.shape[1], -1, *column.shape[3:]))
            columns[name] = moved.masked_fill_(index < 0, -1 if name == "positions" else 0)
        return replace(self, columns=columns, lengths=lengths)


def with_newest(found: Tensor, newest: Sequence[int], tokens: int, value: float | bool) -> Tensor:
    """What was found ``[rows, heads, n]`` of a grid of so many tokens `without` some, and a value for these."""
    if len(set(newest)) == 1:
        return F.pad(found, (0, newest[0]), value=value)
    source = steps(tokens, found.device) + torch.tensor(newest, device=found.device)[:, None]
    moved = found.gather(2, source.clamp_max(tokens - 1)[:, None].expand(-1, found.shape[1], -1))
    return moved.masked_fill_((source >= tokens)[:, None], value)


def refuse_nan_in(grid: Grid, scores: Tensor, judge: str, reason: str) -> None:
    """`namm.policies.pool.refuse_nan` of many heads, ``[rows, heads, tokens]``, with no NaN where there is no token."""
    if math.isnan(float(scores.amax())):
        index = int(scores.isnan().any(-1).any(0).nonzero()[0])
        refuse_nan([replace(grid.head(0), index=index)], [scores], judge, reason)


def best_of(scores: Tensor, there: Tensor, count: Tensor, recent: Tensor) -> Tensor:
    """`namm.policies.pool.top` of many heads: the newest tokens and the best of the others, `count` in all.

    Args:
        scores: ``[rows, heads, tokens]`` float, the newest last. there: likewise bool, which are tokens.
        count, recent: ``[rows]`` int64, at least as many of `count` as of `recent`.

    Returns:
        ``[rows, heads, tokens]`` bool.
    """
    count, recent = count[:, None, None], recent[:, None, None]
    newest = steps(scores.shape[2], scores.device) >= scores.shape[2] - recent
    order = torch.where(there, scores.masked_fill(newest, torch.inf), -torch.inf)
    return (ranks(order) < count) & there


def ranks(scores: Tensor) -> Tensor:
    """The place of every score from the highest on, in the last dimension; of equal ones the first comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = steps(scores.shape[-1], scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def pooled_grids(
    grids: Sequence[Grid],
    scores: Sequence[Tensor],
    across: str,
    allowed: Callable[[Head, int], float],
    recent: Callable[[Head, int], int],
    limit: Callable[[Head], int] | None = None,
    safeguard: float = SAFEGUARD,
) -> list[Tensor]:
    """`namm.policies.pool.pooled` of grids; batch rows never share a budget.

    Args:
        grids: of the same rows. scores: of each ``[rows, heads, tokens]``.
        across, allowed, recent, safeguard: as for `pooled`.
        limit: of a head, how many of its tokens may stay, but for those that are certain.

    Returns:
        ``[rows, heads, tokens]`` bool of each grid.
    """
    if across == "layer" and len(grids) > 1:
        return [
            pooled_grids([grid], [own], across, allowed, recent, limit, safeguard)[0]
            for grid, own in zip(grids, scores, strict=True)
        ]
    device = scores[0].device
    totals = [0.0] * len(grids[0].rows)
    keep, rest, running = [], [], []
    for grid, own in zip(grids, scores, strict=True):
        bounds = []
        for number in range(len(grid.rows)):
            head = grid.head(number)
            alone = across == "model" and not grid.whole
            share = share_alone(head, grid.heads, allowed) if alone else allowed(head, head.seen)
            places = max(1, int(share))
            certain = max(1, head.undecided, min(recent(head, places), places))
            most = limit(head) if limit is not None else own.shape[2]
            bounds.append((max(certain, min(round(safeguard * share), most)), certain, max(certain, most)))
            totals[number] += share * grid.heads
        floors, newest, most = torch.tensor(bounds, device=own.device).T
        keep.append(best_of(own, grid.there, floors, newest))
        rest.append((grid.there if limit is None else best_of(own, grid.there, most, newest)) ^ keep[-1])
        running.append(torch.where(rest[-1], own, -torch.inf).flatten(1).to(device))
    heads = sum(grid.heads for grid in grids)
    left = torch.tensor([max(heads, round(total)) for total in totals], device=device)
    for own in keep:
        left = left - own.sum((1, 2)).to(device)
    won = ranks(torch.cat(running, dim=1)) < left[:, None]
    parts = won.split([own[0].numel() for own in keep], dim=1)
    return [
        own | (open_ & part.to(own.device).view_as(own)) for own, open_, part in zip(keep, rest, parts, strict=True)
    ]


def all_have_room(grids: Sequence[Grid], allowed: Callable[[Head, int], float]) -> bool:
    """`namm.policies.pool.has_room` of grids."""
    return not grids[0].whole and all(
        sum(lengths) <= grid.heads * (share_alone(grid.head(number), grid.heads, allowed) + ROOM)
        for grid in grids
        for number, lengths in enumerate(grid.lengths)
    )
