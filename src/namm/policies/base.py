"""What a rule of retention sees and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from namm.support.tensors import Column

REHEARSED = "rehearsed"
"""State column, one number a token, that a rehearsal fills: what a repetition pays the token; 0: not rehearsed."""


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
        attention: ``[carry + queries, tokens]``, rows from the oldest query to the newest, mean over the query heads
            of the group (``[group, carry + queries, tokens]`` for a policy with ``per_query_head``); there only
            inside `Policy.observe`, None elsewhere and for a policy that asks for no attention.
        summary: what `Policy.observe` returned.
    """

    layer: int
    row: int
    index: int
    columns: Mapping[str, Tensor]
    seen: int
    new: int
    attention: Tensor | None = None
    summary: Any = None

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
        carry: rows of attention of the *previous* block's last queries that come before them (zeros at the first).
        per_query_head: give `observe` the attention of every query head instead of their mean.
        state: columns of its own, kept beside K and V of every token, zero for new tokens; one called `REHEARSED` is
            filled by `MemoryCache.rehearse`.
        needs_rehearsal: it can't decide without one.
    """

    update_interval: int | None = 256
    queries: int | None = 0
    smallest_block: int = 1
    carry: int = 0
    per_query_head: bool = False
    state: Mapping[str, Column] = {}
    needs_rehearsal: ClassVar[bool] = False
    name: ClassVar[str] = "policy"

    @property
    def rehearses(self) -> bool:
        """Whether it looks at a rehearsal."""
        return REHEARSED in self.state and self.update_interval is not None

    def observe(self, head: Head) -> Any:
        """Look at `head.attention`, update columns; what is returned (None is fine) becomes `head.summary`."""
        return None

    def keep(self, head: Head) -> Tensor:
        """``[tokens]`` bool: True for the tokens that stay."""
        raise TypeError(f"{type(self).__name__} must define keep(head) or select(heads)")

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        """Answer for all heads of one layer at once; by default `keep` of each."""
        return [self.keep(head) for head in heads]


@dataclass
class BudgetPolicy(Policy):
    """A rule with a budget.

    Attributes:
        budget: tokens a head may keep after an update: a fraction (float in (0, 1]) of the tokens seen so far, or a
            number (int) of tokens.
        update_interval: tokens between two updates.
    """

    budget: float | int = 0.25
    update_interval: int | None = 256

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        if self.update_interval is not None:
            check_count("update_interval", self.update_interval, 1)

    def tokens(self, head: Head) -> int:
        """Tokens the head may keep now, at least 1."""
        return min(head.tokens, tokens_within(self.budget, head))


def check_budget(name: str, budget: float | int) -> None:
    """Raises TypeError or ValueError unless the budget is a number of tokens or a fraction."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"{name} must be a number, got {budget!r}")
    if not (budget >= 1 if isinstance(budget, int) else 0.0 < budget <= 1.0):
        raise ValueError(f"{name} must be an int >= 1 (tokens) or a float in (0, 1] (fraction), got {budget!r}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises TypeError or ValueError unless the value is a whole number and large enough."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def tokens_within(budget: float | int, head: Head) -> int:
    """Tokens that a budget allows a head now, at least 1."""
    return max(1, budget if isinstance(budget, int) else round(budget * head.seen))


def top(scores: Tensor, count: int, recent: int = 0) -> Tensor:
    """``[tokens]`` bool, True for the `recent` newest tokens and the best of the others: `count` in all.

    >>> top(torch.tensor([0.1, 0.9, 0.5, 0.0]), count=2, recent=1)
    tensor([False,  True, False,  True])
    """
    recent = min(recent, count)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    older = len(scores) - recent
    keep[older:] = True
    keep[scores[:older].topk(count - recent).indices] = True
    return keep
