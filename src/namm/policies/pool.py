"""One budget for many heads: whose tokens compete for it, and which of them win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from namm.policies.head import Head

ACROSS = ("head", "layer", "model")
SAFEGUARD = 0.2  # of its even share is a head's whatever the others' scores, as in AdaKV
SLACK = 2.5  # even shares of what came since all layers were compared, that a layer may hold until they are again
ROOM = 512  # tokens a head that it may hold more before it is cut to that


def top(scores: Tensor, count: int, recent: int = 0) -> Tensor:
    """``[tokens]`` bool, True for the `recent` newest tokens and the best of the others: `count` in all.

    >>> top(torch.tensor([0.1, 0.9, 0.5, 0.0]), count=2, recent=1)
    tensor([False,  True, False,  True])
    """
    count = min(count, len(scores))
    recent = min(recent, count)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    older = len(scores) - recent
    keep[older:] = True
    keep[ranked(scores[:older])[: count - recent]] = True
    return keep


def ranked(scores: Tensor) -> Tensor:
    """Indices of scores ``[n]`` from the highest on; of equal ones the first comes first, in every engine."""
    return scores.argsort(descending=True, stable=True)


def best(
    scores: Sequence[Tensor],
    total: int,
    certain: Sequence[int],
    floors: Sequence[int],
    limits: Sequence[int] | None = None,
) -> list[Tensor]:
    """The best tokens of several heads: one threshold for all of them.

    Args:
        scores: of each head ``[tokens]``; heads may be on several devices.
        total: tokens that stay of all heads together; more only where what is certain is more.
        certain: of each head, how many of the newest stay in any case.
        floors: of each head, how many tokens stay in any case, the certain ones among them, the best of the others.
        limits: of each head, how many may stay, but for those that are certain.

    Returns:
        ``[tokens]`` bool of each head.
    """
    limits = [len(own) for own in scores] if limits is None else limits
    bounds = list(zip(scores, certain, floors, limits, strict=True))
    keep = [top(own, max(newest, min(floor, limit)), recent=newest) for own, newest, floor, limit in bounds]
    rest = [top(own, max(newest, limit), recent=newest) for own, newest, _, limit in bounds]
    rest = [open_ & ~own for open_, own in zip(rest, keep, strict=True)]
    device = scores[0].device
    running = torch.cat([own[open_].to(device) for own, open_ in zip(scores, rest, strict=True)])
    won = torch.zeros(running.shape, dtype=torch.bool, device=device)
    places = total - sum(int(own.sum()) for own in keep)
    won[ranked(running)[: max(0, places)]] = True
    for own, open_, part in zip(keep, rest, won.split([int(o.sum()) for o in rest]), strict=True):
        own[open_] = part.to(own.device)
    return keep


def pooled(
    heads: Sequence[Head],
    scores: Sequence[Tensor],
    across: str,
    allowed: Callable[[Head, int], float],
    recent: Callable[[Head, int], int],
    limits: Sequence[int] | None = None,
    safeguard: float = SAFEGUARD,
) -> list[Tensor]:
    """Which tokens stay where the heads of a layer, or of the whole model, share a budget; batch rows never do.

    Args:
        heads: decided on at one moment. scores: of each ``[tokens]``, comparable between heads.
        across: "layer" or "model".
        allowed: of a head after so many tokens, its even share of the budget in tokens.
        recent: of a head with so many places, how many of its newest tokens stay in any case.
        limits: see `best`.
        safeguard: share of its even share that is a head's in any case.

    Returns:
        ``[tokens]`` bool of each head.
    """
    answers: dict[int, Tensor] = {}
    for members in groups(heads, across):
        own = [heads[number] for number in members]
        if across == "layer" or own[0].whole:
            shares = [allowed(head, head.seen) for head in own]
        else:
            shares = [share_alone(head, len(own), allowed) for head in own]
        places = [max(1, int(share)) for share in shares]  # no more than there are in all
        certain = [
            max(1, head.undecided, min(recent(head, count), count)) for head, count in zip(own, places, strict=True)
        ]
        found = best(
            [scores[number] for number in members],
            max(len(own), round(sum(shares))),
            certain,
            [round(safeguard * share) for share in shares],
            None if limits is None else [limits[number] for number in members],
        )
        answers.update(zip(members, found, strict=True))
    return [answers[number] for number in range(len(heads))]


def groups(heads: Sequence[Head], across: str) -> list[list[int]]:
    """Numbers of the heads that share a budget: those of one batch row, and of one layer where only a layer's do."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, head in enumerate(heads):
        found.setdefault((head.row, head.layer) if across == "layer" else (head.row,), []).append(number)
    return list(found.values())


def share_alone(head: Head, heads: int, allowed: Callable[[Head, int], float]) -> float:
    """Tokens that one of so many heads of a layer may hold, in the mean, until all layers are compared.

    Layers need very different numbers of tokens, and which need more is known only when all have been compared. Until
    then a layer has the share that it was given the last time, and `SLACK` even shares of what has come since.
    """
    before, kept = head.compared or (0, 0)
    even = allowed(head, head.seen)
    earlier = allowed(head, before) if before else 0.0
    own = kept / heads * even / earlier if earlier else 0.0
    return own + SLACK * (even - earlier)


def has_room(heads: Sequence[Head], allowed: Callable[[Head, int], float]) -> bool:
    """Whether no layer of these has to decide before all layers are compared: none is `ROOM` over its share."""
    rows = [[heads[number] for number in members] for members in groups(heads, "layer")]
    return not heads[0].whole and all(
        sum(head.tokens for head in own) <= len(own) * (share_alone(own[0], len(own), allowed) + ROOM) for own in rows
    )


def refuse_nan(heads: Sequence[Head], scores: Sequence[Tensor], judge: str, reason: str) -> None:
    """Raises ValueError for a score of NaN, which says nothing of its token, naming the head and who scored it."""
    for head, own in zip(heads, scores, strict=True):
        if own.isnan().any():
            raise not_a_number(head.layer, head.index, judge, reason)


def not_a_number(layer: int, head: int, judge: str, reason: str) -> ValueError:
    """The error of a score of NaN."""
    return ValueError(
        f"{judge} scores tokens of layer {layer}, KV head {head}, as NaN: the model's attention overflows its dtype"
        f"{reason}; load the model in bfloat16 or float32"
    )
