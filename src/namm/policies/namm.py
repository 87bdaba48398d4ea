from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from namm.memory import NAMM
from namm.memory.features import observe, observe_padded, observed
from namm.memory.influence import MINIMUM_REST, score_of
from namm.policies.base import REHEARSED, Policy, check_budget, check_count, check_kept, tokens_of, tokens_within
from namm.policies.grid import (
    NO_LIMIT,
    Grid,
    Places,
    all_have_room,
    chosen,
    refuse_nan_in,
    shared_places,
    with_newest,
)
from namm.policies.head import Head, Segments
from namm.policies.pool import groups, has_room, pooled, refuse_nan, top
from namm.support.tensors import Column

SCORED = 2**15  # tokens that are scored at once, or a single head's
WILD = ", or the memory's weights are wild"
GOLDEN = (5**0.5 - 1) / 2
LEAST = 0.02  # of an even share, that every head keeps whatever its scores


@dataclass
class NAMMPolicy(Policy):
    """The neural attention memory: a score for every token, by which the best stay.

    With `kept` or `budget`, one budget is shared by all heads, and the highest scores of all layers win it; see
    `MemoryCache.settle`, after which it is met. With `offset` each token is judged by itself, as in the paper (arXiv
    2410.13166): it stays where its score is at least ``-offset``, and what is kept depends on the text.

    Attributes:
        memory: the network and its configuration, which also sets the update interval.
        offset: added to every score; larger keeps more.
        kept: fraction of the tokens seen that stay, mean over heads and layers. With none of the three, the memory's
            own ``config.kept`` counts, and without that an offset of 0.
        budget: tokens that stay, mean over heads and layers.
        cap: at most this many tokens a head (int) or this fraction of the tokens seen (float), the best by score.
        rehearsed: look at a rehearsal too (`MemoryCache.rehearse`): the score of a token is then at least that of an
            influence as large as the largest share of attention that a repetition paid it. 2 bytes a token and head.
        spread: of the scores, plus and minus half of it, from token to token as evenly as can be: tokens that score
            about alike then stay from everywhere. For what repeats itself over and over, as videos do; 0: none.
    """

    name = "namm"
    across: ClassVar[str] = "model"
    memory: NAMM
    offset: float | None = None
    kept: float | None = None
    budget: int | None = None
    cap: float | int | None = None
    rehearsed: bool = False
    spread: float = 0.0

    def __post_init__(self) -> None:
        config = self.memory.config
        if sum(given is not None for given in (self.offset, self.kept, self.budget)) > 1:
            raise ValueError("give only one of offset, kept and budget")
        if self.offset is not None and math.isnan(self.offset):
            raise ValueError("offset is NaN: give a number, or a fraction as `kept`")
        if self.kept is not None:
            check_kept(self.kept)
        if self.budget is not None:
            check_count("budget", self.budget, 1)
        if self.cap is not None:
            check_budget("cap", self.cap)
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread is {self.spread}; it must be 0 or a positive number of the scores' unit")
        wanted = config.kept if self.offset is None and self.kept is None else self.kept
        self.share: float | int | None = self.budget or (None if wanted is None else float(wanted))
        """Of a head, in tokens (int) or as a fraction of those seen (float); None: every token is judged by itself."""
        self.trims = self.share is not None and self.across == "model"
        self._placed: dict[torch.device, tuple[Tensor, NAMM]] = {}
        self.update_interval = config.update_interval
        self.queries = None
        self.carry = config.spectrogram.carry
        self.smallest_block = max(config.spectrogram.hop, self.carry)
        self.state = config.state
        if self.rehearsed:
            if config.influence is None:
                raise ValueError("only a distilled memory knows what influence scores mean, which rehearsal needs")
            self.needs_rehearsal = True
            self.state = self.state | {REHEARSED: Column((), torch.float16)}

    def observe(self, head: Head) -> None:
        """Carries the state on."""
        assert head.attention is not None
        observe(head.columns, head.attention, head.new, self.memory.config)

    def observe_layer(self, heads: Sequence[Head], segments: Segments) -> None:
        """In one go, unless a class made from this one observes otherwise."""
        if type(self).observe is not NAMMPolicy.observe:
            return super().observe_layer(heads, segments)
        assert segments.attention is not None
        observe(segments.columns, segments.attention, heads[0].new, self.memory.config, segments.spans)

    @property
    def takes_grids(self) -> bool:
        """Whether it decides about many heads at once; a class made from this one, or one that spreads, is asked head
        by head."""
        return type(self) is NAMMPolicy and not self.spread

    def observe_grid(self, grid: Grid, attention: Tensor, end: int) -> None:
        """`observe` of all heads of a grid with slots from `end` on that hold nothing; see `observe_padded`."""
        observe_padded(grid.columns, attention, grid.new[0], self.memory.config, end, grid.counts)

    def select_grids(self, grids: Sequence[Grid]) -> list[Tensor] | None:
        """`select` of all heads of grids of the same rows: ``[rows, heads, tokens]`` bool, True for tokens only, the
        newest one of every head among them; None: all stay."""
        places = self.places(grids)
        return None if places is None else chosen(grids, [self._scores_of(grid) for grid in grids], places)

    def places(self, grids: Sequence[Grid]) -> Places | None:
        """How many tokens of these grids stay, whatever their scores; None: all."""
        if self.trims and self.cap is None and all_have_room(grids, self._allowed):
            return None
        limit = None if self.cap is None else partial(tokens_within, self.cap)
        if self.share is not None:
            return shared_places(grids, self.across, self._allowed, lambda *_: 1, limit, LEAST)
        most = [
            [NO_LIMIT if limit is None else limit(grid.head(number)) for number in range(len(grid.rows))]
            for grid in grids
        ]
        return Places([[(1, 1, own) for own in rows] for rows in most], least=-(self.offset or 0.0))

    @property
    def judge(self) -> tuple[str, str]:
        """Who scored, and what more may be wrong, for an error."""
        return "the memory", WILD

    def _scores_of(self, grid: Grid) -> Tensor:
        """`score` of all heads of a grid, ``[rows, heads, tokens]``."""
        asked = grid.without(grid.undecided) if any(grid.undecided) else grid
        memory, counts, positions = self.memory_on(grid.positions.device), asked.counts, asked.positions
        seen = observed(asked.columns, memory.config, counts)
        scores = memory.scores(memory.features(seen, positions[..., -1:] - positions, counts))
        scores = torch.where(asked.there, self._with_rehearsal(asked, scores), 0.0)
        refuse_nan_in(asked, scores, *self.judge)
        return with_newest(scores, grid.undecided, grid.positions.shape[2], 0.0) if asked is not grid else scores

    def features(self, head: Head) -> Tensor:
        """``[tokens, features]``, from a head's columns alone."""
        memory = self.memory_on(head.positions.device)
        return memory.features(observed(head.columns, memory.config), head.positions[-1] - head.positions)

    def score(self, heads: Sequence[Head]) -> list[Tensor]:
        """``[tokens]`` float32 of each head; 0 for tokens that are not up for decision."""
        # tokens that were not observed yet stay, and are not to be taken for tokens that nobody looks at
        decided = [head.first(head.tokens - head.undecided) for head in heads]
        found = [torch.zeros(head.tokens, device=head.positions.device) for head in heads]
        for numbers in together(decided):
            features = torch.cat([self.features(decided[number]) for number in numbers])
            lengths = [decided[number].tokens for number in numbers]
            scores = self.memory_on(features.device).scores(features, lengths)
            for number, own in zip(numbers, scores.split(lengths), strict=True):
                found[number][: len(own)] = own
        found = [self._with_rehearsal(head, own) for head, own in zip(heads, found, strict=True)]
        return (
            [own + self.spread * evenly(head) for head, own in zip(heads, found, strict=True)] if self.spread else found
        )

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        """Raises ValueError for a score of NaN, which says nothing of its token."""
        if self._keeps_all(heads):
            return [torch.ones(head.tokens, dtype=torch.bool, device=head.positions.device) for head in heads]
        scores = self.score(heads)
        refuse_nan(heads, scores, *self.judge)
        keep = self.choose(heads, scores)
        self.note(heads, scores, keep)
        return keep

    def untouched(self, tokens: int) -> int:
        """How many of so many tokens, given in one call, come in before any may have to go, whatever the weights."""
        interval = self.memory.config.update_interval
        for end in range(interval, tokens + 1, interval):
            head = Head(0, 0, 0, {"positions": torch.arange(end)}, end, interval, whole=False)
            if not self._keeps_all([head]):
                return max(1, end - 1)
        return tokens

    def choose(self, heads: Sequence[Head], scores: Sequence[Tensor]) -> list[Tensor]:
        """``[tokens]`` bool of each head, from the scores of its tokens."""
        limits = None if self.cap is None else [tokens_within(self.cap, head) for head in heads]
        if self.share is not None:
            return pooled(heads, scores, self.across, self._allowed, lambda *_: 1, limits, LEAST)
        keep = [own + (self.offset or 0.0) >= 0 for own in scores]
        for number, (own, stays) in enumerate(zip(scores, keep, strict=True)):
            stays[-1:] = True  # the newest stays in any case, and counts
            if limits is not None and int(stays.sum()) > limits[number]:
                keep[number] = top(own, limits[number], recent=1)
        return keep

    def note(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> None:
        """Called with every decision, for those who want to look at it."""

    def margins(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> list[Tensor]:
        """Of each head ``[tokens]``: scores less the threshold, which is the highest score of a token that had to go.

        Heads that share a budget share a threshold; where nothing had to go, it is the lowest score.
        """
        if self.share is None:
            return [own + (self.offset or 0.0) for own in scores]
        found = list(scores)
        for members in groups(heads, self.across):
            threshold = highest_gone(*([own[number] for number in members] for own in (scores, keep)))
            if threshold is None:
                threshold = min(float(scores[number].min()) for number in members if len(scores[number]))
            for number in members:
                found[number] = scores[number] - threshold
        return found

    def _keeps_all(self, heads: Sequence[Head]) -> bool:
        return self.trims and self.cap is None and has_room(heads, self._allowed)

    def _allowed(self, head: Head, seen: int) -> float:
        assert self.share is not None
        return tokens_of(self.share, seen)

    def _with_rehearsal(self, head: Head | Grid, scores: Tensor) -> Tensor:
        """Scores ``[..., tokens]``, at least those of the influence that was seen of tokens in a rehearsal."""
        if not self.rehearsed or self.memory.config.influence is None:
            return scores
        # without a token that is paid a, an output changes by a / (1 - a) of how far it is from the token's value
        paid = head.columns[REHEARSED].float()
        known = score_of(paid / (1 - paid).clamp_min(MINIMUM_REST), *self.memory.config.influence)
        return torch.where(paid > 0, torch.maximum(scores, known), scores)

    def memory_on(self, device: torch.device) -> NAMM:
        """The memory on a layer's device; a model may be spread over several, and parameters may be replaced."""
        if self.memory.flat.device == device:
            return self.memory
        source, placed = self._placed.get(device, (None, self.memory))
        if source is not self.memory.flat:
            placed = self.memory.to(device)
            self._placed[device] = self.memory.flat, placed
        return placed


def evenly(head: Head) -> Tensor:
    """``[tokens]`` float32 within -0.5 and 0.5 by position: multiples of the golden ratio, without their whole parts.

    Any run of tokens gets values that lie as evenly as can be; each head has its own, so that not all drop the same.
    """
    turns = head.positions.double() + 7 * head.index + 31 * head.layer
    return (turns * GOLDEN % 1 - 0.5).float()


def highest_gone(scores: Sequence[Tensor], keep: Sequence[Tensor]) -> float | None:
    """The highest score of a token that had to go, of several heads; None where none had to."""
    gone = [own[~stays] for own, stays in zip(scores, keep, strict=True)]
    return max((float(own.max()) for own in gone if len(own)), default=None)


def together(heads: Sequence[Head]) -> Iterator[list[int]]:
    """Numbers of heads that are scored at once: successive ones on one device, of `SCORED` tokens at most."""
    numbers: list[int] = []
    tokens = 0
    for number, head in enumerate(heads):
        moved = bool(numbers) and head.positions.device != heads[numbers[0]].positions.device
        if numbers and (moved or tokens + head.tokens > SCORED):
            yield numbers
            numbers, tokens = [], 0
        if head.tokens:
            numbers.append(number)
            tokens += head.tokens
    if numbers:
        yield numbers
