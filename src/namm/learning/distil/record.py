"""What a network is distilled from: the features of cached tokens, and what each of them went on to change."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.memory import NAMMConfig
from namm.memory.features import observe, observed
from namm.memory.influence import EVERY, influence
from namm.policies import NAMMPolicy, Policy
from namm.policies.head import Head
from namm.support.tensors import mean_of


@dataclass(frozen=True)
class Recording:
    """One head at one update.

    Attributes:
        observed: ``[tokens, config.observed]`` float16, see `namm.memory.features.observed`.
        ages: ``[tokens]`` int32, 0 for the newest.
        influence: ``[tokens]`` float16, see `influence`; the largest of any later block.
    """

    observed: Tensor
    ages: Tensor
    influence: Tensor


@dataclass
class Recorder(Policy):
    """Keeps every token (or what `acting` keeps) and writes down what it sees.

    Attributes:
        config: of the memory to be distilled.
        document: tokens of the document; later ones are its repetition, which is only listened to.
        horizon: the document's last tokens, which are only listened to as well: without a continuation of their own,
            new tokens would look useless.
        share: share of the heads whose features are recorded at each update.
        acting: decides what is kept, so that features are recorded as they look under eviction.
        received: for (layer, head) and every block of queries the influence of each token of the document on them,
            ``[document tokens]``, zero where a token did not exist yet; only without `acting`.
        seen: recorded (layer, head, updates so far, positions, what was observed).
    """

    name = "recorder"
    config: NAMMConfig
    document: int
    horizon: int
    share: float
    rng: random.Random
    acting: NAMMPolicy | None = None
    received: dict[tuple[int, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    seen: list[tuple[int, int, int, Tensor, Tensor]] = field(default_factory=list)

    queries = None
    per_query_head = True

    def __post_init__(self) -> None:
        self.update_interval = self.config.update_interval
        self.carry = self.config.spectrogram.carry
        self.state = self.config.state

    def observe(self, head: Head) -> None:
        assert head.attention is not None
        if self.acting is None:
            inside = int((head.positions < self.document).sum())
            block = torch.zeros(self.document, dtype=torch.float16)
            found = influence(head.attention[:, self.carry :: EVERY], head.values, inside)
            block[head.positions[:inside].long().cpu()] = found.clamp_max(6e4).to("cpu", torch.float16)
            self.received[head.layer, head.index].append(block)
        if head.seen > self.document:
            return
        observe(head.columns, mean_of(head.attention), head.new, self.config)
        if head.seen <= self.document - self.horizon and self.rng.random() < self.share:
            found = observed(head.columns, self.config)
            updates, positions = head.seen // self.config.update_interval, head.positions.cpu().clone()
            self.seen.append((head.layer, head.index, updates, positions, found.to("cpu", torch.float16)))

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        if self.acting is not None:
            return self.acting.select(heads)
        return [torch.ones(head.tokens, dtype=torch.bool, device=head.keys.device) for head in heads]

    def recordings(self, received: dict[tuple[int, int], list[Tensor]]) -> list[Recording]:
        """What was seen, with what a full pass over the same document found to be received afterwards."""
        found = []
        for layer, head, updates, positions, seen in self.seen:
            largest = torch.stack(received[layer, head][updates:]).amax(0)
            found.append(Recording(seen, positions[-1] - positions, largest[positions.long()]))
        return found


@torch.inference_mode()
def record_document(
    model: PreTrainedModel,
    document: Tensor,
    repeat: Tensor,
    config: NAMMConfig,
    *,
    heads: int,
    rng: random.Random,
    horizon: int = 0,
    acting: NAMMPolicy | None = None,
    recorder: type[Recorder] = Recorder,
) -> list[Recording]:
    """Recordings of one document: as a full cache sees it and, with `acting`, as it looks when that memory forgets.

    One pass over the document, the words of `repeat` and the document again finds what every token changes, in its own
    continuation and in its copy, in which the model looks up what it repeats.

    Args:
        document: ``[1, tokens]``, a multiple of the update interval long.
        repeat: ``[1, n]`` tokens that ask for repetition.
        heads: about how many heads to record at every update of each pass.
        horizon: no update is recorded within so many tokens of the document's end.
        recorder: what writes down, where more is to be seen than `config` has.

    Raises:
        ValueError: if the document's length is no multiple of the update interval.
    """
    tokens, interval = document.shape[1], config.update_interval
    if not tokens or tokens % interval:
        raise ValueError(f"a document of {tokens} tokens is no multiple of the update interval {interval}")
    text = model.config.get_text_config(decoder=True)
    share = heads / (text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads))
    document, repeat = document.to(model.device), repeat.to(model.device)
    whole = torch.cat([document, repeat, document], dim=1)
    whole = torch.cat([whole, document[:, : -whole.shape[1] % interval]], dim=1)  # the last block must be full
    full = recorder(config, tokens, horizon, share, rng)
    model(whole, past_key_values=MemoryCache(model, full), logits_to_keep=1)
    recordings = full.recordings(full.received)
    if acting is not None:
        forgetting = recorder(config, tokens, horizon, share, rng, acting)
        model(document, past_key_values=MemoryCache(model, forgetting), logits_to_keep=1)
        recordings += forgetting.recordings(full.received)
    return recordings
