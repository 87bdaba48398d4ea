"""What a rule of retention answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from namm.policies.grid import NO_LIMIT, Grid, Places, chosen, refuse_nan_in, shared_places
from namm.policies.head import Head, Segments
from namm.policies.pool import ACROSS, SAFEGUARD, pooled, refuse_nan, top
from namm.support.tensors import Column

REHEARSED = "rehearsed"
"""State column, one number a token, that a rehearsal fills: what a repetition pays the token; 0: not rehearsed."""


class Policy:
    """Decides, every `update_interval` tokens, which cached tokens of each head stay.

    A rule of your own needs `keep`, and `observe` if it wants to look at attention:

    >>> class EverySecond(Policy):
    ...     def keep(self, head):
    ...         return head.positions % 2 == 0

    The newest token always stays, whatever the answer.

    Attributes:
        update_interval: tokens between two updates, counted for every row in real (not padding) tokens; None: never.
        queries: how many of the newest queries since the last update `observe` sees; 0: none, None: all of them.
        smallest_block: fewer tokens than this since the last update are not decided on, see `MemoryCache.settle`.
        trims: since a layer alone may hold more than its share, it is asked about all layers together after every
            forward pass in which a block ended, and in `MemoryCache.settle` even where too few tokens are new.
        carry: rows of attention of the *previous* block's last queries that come before them (zeros at the first).
        sees_queries: give `observe` the queries themselves as well; the model must have rotary positions.
        per_query_head: give `observe` the attention of every query head instead of their mean.
        state: columns of its own, kept beside K and V of every token, zero for new tokens; one called `REHEARSED` is
            filled by `MemoryCache.rehearse`.
        needs_rehearsal: it can't decide without one.
    """

    update_interval: int | None = 256
    queries: int | None = 0
    smallest_block: int = 1
    trims: bool = False
    carry: int = 0
    per_query_head: bool = False
    sees_queries: bool = False
    state: Mapping[str, Column] = {}
    needs_rehearsal: bool = False
    name: ClassVar[str] = "policy"

    @property
    def takes_grids(self) -> bool:
        """Whether it decides about many heads at once, see `namm.policies.grid`."""
        return False

    @property
    def rehearses(self) -> bool:
        """Whether it looks at a rehearsal."""
        return REHEARSED in self.state and self.update_interval is not None

    def observe(self, head: Head) -> Any:
        """Look at `head.attention`, update columns; what is returned (None is fine) becomes `head.summary`."""
        return None

    def observe_layer(self, heads: Sequence[Head], segments: Segments) -> None:
        """`observe` of all heads of one layer and batch row, whose attention and columns also lie side by side."""
        for head in heads:
            head.summary = self.observe(head)

    def keep(self, head: Head) -> Tensor:
        """``[tokens]`` bool: True for the tokens that stay."""
        raise TypeError(f"{type(self).__name__} must define keep(head) or select(heads)")

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        """Answer for all heads that are decided on at one moment; by default `keep` of each.

        Those are the heads of one layer and all batch rows while a model reads, or of all layers: see `trims` and
        `MemoryCache.settle`.
        """
        return [self.keep(head) for head in heads]


@dataclass(frozen=True)
class Received:
    """A column that holds what tokens were paid by the queries that a rule looks at, mean over the group.

    Attributes:
        column: its name.
        adds: to what it held before; the mean over the queries takes its place where not.
        pool: the largest over so many neighbours counts.
    """

    column: str
    adds: bool = False
    pool: int = 1


@dataclass
class BudgetPolicy(Policy):
    """A rule with a budget: a score for every token, and some of the newest that stay in any case.

    A rule of your own needs `scores`, and `observe` if it wants to look at attention.

    Attributes:
        budget: tokens a head may keep after an update: a fraction (float in (0, 1]) of the tokens seen so far, or a
            number (int) of tokens. Where heads share a budget, the mean over them.
        update_interval: tokens between two updates.
        across: whose tokens compete for one budget: "head", each head has its own; "layer", the heads of a layer share
            theirs (AdaKV, arXiv 2407.11550); "model", all heads of all layers do. One threshold decides then, so that
            scores should mean the same in every head.
        safeguard: share of an even budget that a head has to itself whatever the others' scores.
    """

    budget: float | int = 0.25
    update_interval: int | None = 256
    across: str = field(default="head", kw_only=True)
    safeguard: ClassVar[float] = SAFEGUARD

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        if self.update_interval is not None:
            check_count("update_interval", self.update_interval, 1)
        if self.across not in ACROSS:
            raise ValueError(f"across must be one of {', '.join(ACROSS)}, got {self.across!r}")
        self.trims = self.across == "model"

    def scores(self, head: Head) -> Tensor:
        """``[tokens]``: the higher, the rather a token stays."""
        raise TypeError(f"{type(self).__name__} must define scores(head)")

    def recent(self, head: Head, count: int) -> int:
        """How many of a head's newest tokens stay in any case, if it has `count` places."""
        return 0

    def allowed(self, head: Head, seen: int) -> float:
        """Tokens that the budget gives a head after `seen` of them, fractions of a token included."""
        return tokens_of(self.budget, seen)

    def tokens(self, head: Head) -> int:
        """Tokens the head may keep now, at least 1, where it shares its budget with no other."""
        return min(head.tokens, max(1, round(self.allowed(head, head.seen))))

    def keep(self, head: Head) -> Tensor:
        count = self.tokens(head)
        return top(self.scores(head), count, recent=max(1, head.undecided, self.recent(head, count)))

    @property
    def takes_grids(self) -> bool:
        """Whether its class defines `scores_grid`; one made from that is asked head by head."""
        return "scores_grid" in vars(type(self))

    def scores_grid(self, grid: Grid) -> Tensor:
        """`scores` of many heads at once, ``[rows, heads, tokens]``; anything where there is no token."""
        raise TypeError(f"{type(self).__name__} must define scores_grid(grid)")

    @property
    def received(self) -> Received | None:
        """What `observe` makes of attention, if it is no more than that."""
        return None

    def observe_grid(self, grid: Grid, attention: Tensor | None, end: int) -> None:
        """`observe` of many heads at once; if it is no more than `received` tells, engines may do without it.

        Args:
            grid: with columns ``[rows, heads, slots, ...]``, which hold nothing from the slot `end` on.
            attention: ``[queries, rows, heads, slots]``, mean over the group.
        """

    def select_grids(self, grids: Sequence[Grid]) -> list[Tensor] | None:
        """`select` of all heads of grids of the same rows, ``[rows, heads, tokens]`` bool, True for tokens only."""
        scores = [self.scores_grid(grid) for grid in grids]
        if self.across != "head":
            for grid, own in zip(grids, scores, strict=True):
                refuse_nan_in(grid, own, *self.judge)
        return chosen(grids, scores, self.places(grids))

    def places(self, grids: Sequence[Grid]) -> Places:
        """How many tokens of these grids stay, whatever their scores."""
        if self.across != "head":
            return shared_places(grids, self.across, self.allowed, self.recent, safeguard=self.safeguard)
        bounds: list[list[tuple[int, int, int]]] = []
        for grid in grids:
            bounds.append([])
            for head in map(grid.head, range(len(grid.rows))):
                count = max(1, round(self.allowed(head, head.seen)))
                certain = min(count, max(1, head.undecided, self.recent(head, count)))
                bounds[-1].append((certain, count, NO_LIMIT))
        return Places(bounds)

    @property
    def judge(self) -> tuple[str, str]:
        """Who scored, and what more may be wrong, for an error."""
        return f"the rule {self.name!r}", ""

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        if self.across == "head":
            return super().select(heads)
        scores = [self.scores(head) for head in heads]
        refuse_nan(heads, scores, *self.judge)
        return pooled(heads, scores, self.across, self.allowed, self.recent, safeguard=self.safeguard)


def check_budget(name: str, budget: float | int) -> None:
    """Raises TypeError or ValueError unless the budget is a number of tokens or a fraction."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"{name} must be a number, got {budget!r}")
    if not (budget >= 1 if isinstance(budget, int) else 0.0 < budget <= 1.0):
        raise ValueError(f"{name} must be an int >= 1 (tokens) or a float in (0, 1] (fraction), got {budget!r}")


def check_kept(kept: float) -> None:
    """Raises TypeError or ValueError unless it is a fraction."""
    if isinstance(kept, bool) or not isinstance(kept, (int, float)):
        raise TypeError(f"kept must be a number, got {kept!r}")
    if not 0.0 < kept <= 1.0:
        raise ValueError(f"kept must be a fraction above 0 and at most 1, got {kept!r}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises TypeError or ValueError unless the value is a whole number and large enough."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def tokens_of(budget: float | int, seen: int) -> float:
    """Tokens that a budget gives a head after `seen` of them."""
    return float(budget if isinstance(budget, int) else budget * seen)


def tokens_within(budget: float | int, head: Head) -> int:
    """Tokens that a budget allows a head now, at least 1."""
    return max(1, round(tokens_of(budget, head.seen)))
