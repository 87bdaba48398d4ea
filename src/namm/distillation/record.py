"""What a network is taught with: the features of cached tokens, and the attention they went on to receive."""

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
from namm.policies import NAMMPolicy, Policy
from namm.policies.base import Head
from namm.reductions import column_maximum, mean_of
from namm.spectrogram import update_spectrogram
from namm.storage import Column


@dataclass(frozen=True)
class Sample:
    """One head at one update.

    Attributes:
        spectrogram: ``[tokens, len(ema), bins]`` bfloat16, as the cache would hold it.
        ages: ``[tokens]`` int32, 0 for the newest.
        attention: ``[tokens]`` float16, the largest attention that any later query of the group pays each token.
    """

    spectrogram: Tensor
    ages: Tensor
    attention: Tensor


@dataclass
class Received:
    """The largest attention that each token of a document receives after each update, for one head.

    Attributes:
        blocks: for every block of queries ``[document tokens]``, zero where a token did not exist yet.
    """

    blocks: list[Tensor] = field(default_factory=list)

    def after(self, updates: int) -> Tensor:
        """``[document tokens]``: attention received in all blocks after the first `updates`."""
        return torch.stack(self.blocks[updates:]).amax(0)


@dataclass
class Recorder(Policy):
    """Keeps every token (or what `acting` keeps) and writes down what it sees.

    Attributes:
        config: of the memory to be taught.
        document: tokens of the document; later ones are its repetition, which is only listened to.
        share: share of the heads whose features are recorded at each update.
        acting: decides what is kept, so that features are recorded as they look under eviction.
        received: for (layer, head), see `Received`; only without `acting`.
        seen: recorded (layer, head, updates so far, positions, spectrogram).
    """

    name = "recorder"
    config: NAMMConfig
    document: int
    share: float
    rng: random.Random
    acting: NAMMPolicy | None = None
    received: dict[tuple[int, int], Received] = field(default_factory=lambda: defaultdict(Received))
    seen: list[tuple[int, int, int, Tensor, Tensor]] = field(default_factory=list)

    queries = None
    per_query_head = True

    def __post_init__(self) -> None:
        self.update_interval = self.config.update_interval
        self.carry = self.config.spectrogram.carry
        self.state = {"spectrogram": Column((len(self.config.ema), self.config.spectrogram.bins))}

    def observe(self, head: Head) -> Tensor | None:
        assert head.attention is not None
        if self.acting is None:
            inside = int((head.positions < self.document).sum())
            block = torch.zeros(self.document, dtype=torch.float16)
            peaks = column_maximum(head.attention[:, self.carry :, :inside].flatten(0, 1))
            block[head.positions[:inside].long().cpu()] = peaks.to("cpu", torch.float16)
            self.received[head.layer, head.index].blocks.append(block)
        if head.seen > self.document:
            return None
        spectrogram = update_spectrogram(head.columns["spectrogram"], mean_of(head.attention), self.config.spectrogram)
        head.columns["spectrogram"].copy_(spectrogram)
        if self.rng.random() < self.share:
            updates, positions = head.seen // self.config.update_interval, head.positions.cpu().clone()
            self.seen.append((head.layer, head.index, updates, positions, spectrogram.bfloat16().cpu()))
        if self.acting is None:
            return None
        return self.acting.memory.to(spectrogram.device).features(spectrogram, head.positions[-1] - head.positions)

    def select(self, heads: Sequence[Head]) -> list[Tensor]:
        if self.acting is not None:
            return self.acting.select(heads)
        return [torch.ones(head.tokens, dtype=torch.bool, device=head.keys.device) for head in heads]

    def samples(self, received: dict[tuple[int, int], Received]) -> list[Sample]:
        """What was seen, with what a full pass over the same document found to be received."""
        return [
            Sample(spectrogram, positions[-1] - positions, received[layer, head].after(updates)[positions.long()])
            for layer, head, updates, positions, spectrogram in self.seen
        ]


@torch.inference_mode()
def record_document(
    model: PreTrainedModel,
    document: Tensor,
    repeat: Tensor,
    config: NAMMConfig,
    *,
    heads: int,
    rng: random.Random,
    acting: NAMMPolicy | None = None,
) -> list[Sample]:
    """Samples of one document: as a full cache sees it and, with `acting`, as it looks when that memory forgets.

    One pass over the document, the words of `repeat` and the document again finds the attention that every token
    receives, from its own continuation and from its copy, in which the model looks up what it repeats.

    Args:
        document: ``[1, tokens]``, a multiple of the update interval long.
        repeat: ``[1, n]`` tokens that ask for repetition.
        heads: about how many heads to record at every update of each pass.

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
    full = Recorder(config, tokens, share, rng)
    model(whole, past_key_values=MemoryCache(model, full), logits_to_keep=1)
    samples = full.samples(full.received)
    if acting is not None:
        forgetting = Recorder(config, tokens, share, rng, acting)
        model(document, past_key_values=MemoryCache(model, forgetting), logits_to_keep=1)
        samples += forgetting.samples(full.received)
    return samples
