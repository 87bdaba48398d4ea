from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.memory import NAMM
from namm.memory.features import observe, observed
from namm.policies.base import Head, Policy, check_budget, tokens_within
from namm.policies.pool import top


@dataclass
class NAMMPolicy(Policy):
    """The neural attention memory: keep a token where its score is at least ``-offset``.

    Attributes:
        memory: the network and its configuration, which also sets the update interval.
        offset: added to every score; larger keeps more. One memory serves all sizes by it, without retraining.
        kept: instead of `offset`: the fraction to aim at, by offsets that were calibrated for every length. What is
            kept in the end still depends on the text. With neither, the memory's own ``config.kept`` counts, and
            without that an offset of 0 as in the paper.
        cap: at most this many tokens a head (int) or this fraction of the tokens seen (float), the best by score.
    """

    name = "namm"
    memory: NAMM
    offset: float | None = None
    kept: float | None = None
    cap: float | int | None = None

    def __post_init__(self) -> None:
        config = self.memory.config
        if self.kept is not None and self.offset is not None:
            raise ValueError("give either offset or kept, not both")
        self._aim = config.kept if self.kept is None and self.offset is None else self.kept
        if self.offset is not None and math.isnan(self.offset):
            raise ValueError("offset is NaN: give a number, or a fraction as `kept`")
        if self._aim is not None:
            self.memory.offset_for(self._aim, 1)  # refuse early
        if self.cap is not None:
            check_budget("cap", self.cap)
        self._placed: dict[torch.device, tuple[Tensor, NAMM]] = {}
        self.update_interval = config.update_interval
        self.queries = None
        self.carry = config.spectrogram.carry
        self.smallest_block = max(config.spectrogram.hop, self.carry)
        self.state = config.state

    def observe(self, head: Head) -> Tensor:
        """Carries the state on and returns the features ``[tokens, features]``."""
        assert head.attention is not None
        memory = self._memory_on(head.positions.device)
        observe(head.columns, head.attention, head.new, memory.config)
        return memory.features(observed(head.columns, memory.config), head.positions[-1] - head.positions)

    def keep(self, head: Head) -> Tensor:
        return self.decide(head, self._memory_on(head.positions.device).scores(head.summary))

    def decide(self, head: Head, scores: Tensor) -> Tensor:
        """``[tokens]`` bool from the scores of a head's tokens, ``[tokens]``.

        Raises:
            ValueError: for a score of NaN, which says nothing of its token.
        """
        scores = scores + self.offset_at(head.seen)
        if scores.isnan().any():
            raise ValueError(
                f"the memory scores tokens of layer {head.layer}, KV head {head.index}, as NaN: the model's attention "
                "overflows its dtype, or the memory's weights are wild; load the model in bfloat16 or float32"
            )
        keep = scores >= 0
        keep[-1] = True  # the newest stays in any case, and counts
        if self.cap is not None and int(keep.sum()) > (limit := tokens_within(self.cap, head)):
            keep = top(scores, limit, recent=1)
        return keep

    def offset_at(self, seen: int) -> float:
        """What is added to the scores after so many tokens."""
        return self.offset or 0.0 if self._aim is None else self.memory.offset_for(self._aim, seen)

    def _memory_on(self, device: torch.device) -> NAMM:
        """The memory on a layer's device; a model may be spread over several, and parameters may be replaced."""
        if self.memory.flat.device == device:
            return self.memory
        source, placed = self._placed.get(device, (None, self.memory))
        if source is not self.memory.flat:
            placed = self.memory.to(device)
            self._placed[device] = self.memory.flat, placed
        return placed
