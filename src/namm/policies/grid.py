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
        return len(self.lengths[0])

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


NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Places:
    """How many tokens stay of heads that are decided on at one moment, as far as no score has a say in it.

    Attributes:
        bounds: of each grid, for each of its rows: how many of the newest tokens stay in any case; how many stay in any
            case, these among them, the best of the others; and how many may stay, but for the newest.
        left: of each grid, or of all together, for each row: how many more of its heads' tokens stay, the best of those
            that may; None: as many as reach `least`, or none where that is None too.
        least: score.
    """

    bounds: Sequence[Sequence[tuple[int, int, int]]]
    left: Sequence[Sequence[int]] | None = None
    least: float | None = None


def shared_places(
    grids: Sequence[Grid],
    across: str,
    allowed: Callable[[Head, int], float],
    recent: Callable[[Head, int], int],
    limit: Callable[[Head], int] | None = None,
    safeguard: float = SAFEGUARD,
) -> Places:
    """Where heads share a budget, as `namm.policies.pool.pooled` has it; batch rows never do.

    Args:
        grids: of the same rows.
        across, allowed, recent, safeguard: as for `pooled`.
        limit: of a head, how many of its tokens may stay, but for those that are certain.
    """
    bounds: list[list[tuple[int, int, int]]] = []
    left: list[list[int]] = []
    for together in [[grid] for grid in grids] if across == "layer" else [grids]:
        rows = range(len(together[0].rows))
        totals, held, heads = [0.0 for _ in rows], [0 for _ in rows], sum(grid.heads for grid in together)
        for grid in together:
            bounds.append([])
            for number in rows:
                head = grid.head(number)
                alone = across == "model" and not grid.whole
                share = share_alone(head, grid.heads, allowed) if alone else allowed(head, head.seen)
                places = max(1, int(share))
                certain = max(1, head.undecided, min(recent(head, places), places))
                most = NO_LIMIT if limit is None else limit(head)
                floor = max(certain, min(round(safeguard * share), most))
                bounds[-1].append((certain, floor, max(certain, most)))
                totals[number] += share * grid.heads
                held[number] += sum(min(length, floor) for length in grid.lengths[number])
        left.append([max(heads, round(total)) - own for total, own in zip(totals, held, strict=True)])
    return Places(bounds, left)


def chosen(grids: Sequence[Grid], scores: Sequence[Tensor], places: Places) -> list[Tensor]:
    """``[rows, heads, tokens]`` bool of each grid, True for tokens that stay, by scores ``[rows, heads, tokens]``."""
    keep, rest = [], []
    for grid, own, bounds in zip(grids, scores, places.bounds, strict=True):
        newest, floors, most = torch.tensor(bounds, device=own.device).T
        limited = min(bound[2] for bound in bounds) < own.shape[2]
        best = best_of(own, grid.there, most, newest) if limited else grid.there
        if places.least is not None:
            stays = grid.there & (own >= places.least)
            stays[..., -1] = True
            keep.append(torch.where(stays.sum(-1, keepdim=True) > most[:, None, None], best, stays))
        else:
            keep.append(best_of(own, grid.there, floors, newest))
            rest.append(best ^ keep[-1])
    if places.left is None:
        return keep
    if len(places.left) > 1:
        each = zip(grids, scores, keep, rest, places.left, strict=True)
        return [_with_best([grid], [own], [sure], [open_], left)[0] for grid, own, sure, open_, left in each]
    return _with_best(grids, scores, keep, rest, places.left[0])


def _with_best(
    grids: Sequence[Grid], scores: Sequence[Tensor], keep: Sequence[Tensor], rest: Sequence[Tensor], left: Sequence[int]
) -> list[Tensor]:
    """What is kept, and of the rest of all grids the best, so many of each row."""
    device = scores[0].device
    running = [
        torch.where(open_, own, -torch.inf).flatten(1).to(device) for own, open_ in zip(scores, rest, strict=True)
    ]
    won = ranks(torch.cat(running, dim=1)) < torch.tensor(left, device=device)[:, None]
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
