"""First weights by gradient: learn from recorded attention which tokens will still be needed.

One full-cache pass over a document and its repetition tells, for every cached token, how much attention it will
receive: from the text that follows, and from the copy, in which a model looks up what it repeats (without this part
retrieval of facts that nothing had asked for yet is lost). A network regresses the logarithm of that on the features.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm.memory import NAMMConfig
from namm.policies import NAMMPolicy, Policy
from namm.policies.base import Head
from namm.reductions import column_maximum, column_sum, mean_of
from namm.spectrogram import update_spectrogram
from namm.storage import Column

TARGET_FLOOR = 1e-5
REPEAT = "\n\nRepeat the text above.\n\n"


@dataclass
class Sample:
    """What one head saw at one update.

    Attributes:
        spectrogram: ``[tokens, len(ema), bins]`` bfloat16. positions: ``[tokens]`` int32.
        target: ``[tokens]`` float32, log of the attention that each token will receive.
    """

    spectrogram: Tensor
    positions: Tensor
    layer: int
    head: int
    update: int
    target: Tensor | None = None


@dataclass
class Recorder(Policy):
    """Keeps every token, or what `acting` keeps, and writes down features and attention received.

    Attributes:
        config: of the memory to be.
        document: tokens of the document; what comes after is its repetition.
        fraction: share of the heads recorded at each update.
        acting: decides what is kept, for features as they look under eviction; None keeps all.
    """

    name = "recorder"
    config: NAMMConfig
    document: int
    fraction: float
    rng: random.Random
    acting: NAMMPolicy | None = None
    samples: list[Sample] = field(default_factory=list)
    peaks: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    energies: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)

    queries = None
    per_query_head = True

    def __post_init__(self) -> None:
        self.update_interval = self.config.update_interval
        self.carry = self.config.spectrogram.carry
        self.state = {"spectrogram": Column((len(self.config.ema), self.config.spectrogram.bins), torch.float32)}

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        if self.acting is None:
            fresh = head.attention[:, self.carry :]
            where = head.positions[head.positions < self.document].long()
            peak = torch.zeros(self.document)
            peak[where] = column_maximum(fresh.flatten(0, 1)[:, : len(where)]).float()
            energy = torch.zeros(self.document)
            energy[where] = column_sum(fresh.flatten(0, 1)[:, : len(where)].float().square_())
            self.peaks.setdefault((head.layer, head.index), []).append(peak)
            self.energies.setdefault((head.layer, head.index), []).append(energy)
        if head.seen > self.document:
            return
        mean = mean_of(head.attention)
        spectrogram = update_spectrogram(head.state["spectrogram"], mean, self.config.spectrogram)
        head.state["spectrogram"].copy_(spectrogram)
        head.summary = spectrogram
        if self.rng.random() < self.fraction:
            update = head.seen // self.config.update_interval - 1
            self.samples.append(Sample(spectrogram.bfloat16(), head.positions.clone(), head.layer, head.index, update))
        if self.acting is not None:
            return self.acting.memory.features(spectrogram, head.positions[-1] - head.positions)

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        if self.acting is not None:
            return self.acting.select(heads)
        return [torch.ones(head.tokens, dtype=torch.bool, device=head.keys.device) for head in heads]
