"""Reading a text under a policy, and writing down which head forgets which token when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from namm.cache import MemoryCache
from namm.cache.stats import CacheStats
from namm.inspection.report import report_page
from namm.memory import NAMM
from namm.policies import NAMMPolicy, Policy
from namm.policies.head import Head
from namm.tasks.encode import with_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Inspection:
    """What one policy held of a text after each of its updates.

    Attributes:
        name: of the policy, to show.
        text: what was read.
        spans: ``[tokens, 2]`` int64, where each token begins and ends in the text. They do not overlap: of tokens that
            share a character the first has it, the others are empty, as are tokens that stand for nothing written.
        layers: index in the model of each layer that forgets.
        updates: tokens seen at each update, rising; the last is the whole text.
        forgotten: ``[layers, heads, tokens]`` int16: one more than the last update (an index of `updates`) after which
            a head held the token; 0 where its first update forgot it, ``len(updates)`` where none did.
        scores: ``[layers, heads, tokens]`` float32, a memory's score of a token the last time a head judged it, less
            the threshold: below 0 it stays only if it must, see `NAMMPolicy.margins`. NaN: never judged. None under a
            rule without scores, or where nothing was judged.
        spectrogram: ``[tokens, len(ema), bins]`` float32, mean over layers and heads of the averaged magnitudes that
            went with these scores (before compression). None likewise.
        stats: what the cache held in the end.
    """

    name: str
    text: str
    spans: np.ndarray
    layers: tuple[int, ...]
    updates: tuple[int, ...]
    forgotten: np.ndarray
    scores: np.ndarray | None
    spectrogram: np.ndarray | None
    stats: CacheStats

    @property
    def tokens(self) -> int:
        return len(self.spans)

    def held(self, update: int = -1) -> np.ndarray:
        """``[layers, heads, tokens]`` bool: what each head holds after an update (an index of `updates`)."""
        index = range(len(self.updates))[update]
        return (self.forgotten > index) & (np.arange(self.tokens) < self.updates[index])

    def kept(self, update: int = -1) -> np.ndarray:
        """``[tokens]`` float: the share of all heads that hold a token after an update."""
        return self.held(update).mean((0, 1))

    def kept_by_head(self, update: int = -1) -> np.ndarray:
        """``[layers, heads]`` float: the share of the tokens seen that each head holds after an update."""
        return self.held(update).sum(-1) / self.updates[update]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat record a token, for ``pandas.DataFrame(inspection.rows())``."""
        kept = self.kept()
        scores = None if self.scores is None else _mean_over_heads(self.scores)
        for position, (start, end) in enumerate(self.spans):
            row = {"position": position, "text": self.text[start:end], "kept": float(kept[position])}
            yield row if scores is None else row | {"score": float(scores[position])}

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        page = escape(report_page([self]), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:720px;border:0"></iframe>'


@torch.inference_mode()
def inspect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    policy: Policy | NAMM,
    *,
    tokens: int | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Read a text under a policy, update by update, and decide at its end about what is left.

    Args:
        tokens: read at most so many.
        name: to show; else the policy's own.
        progress: called with tokens read and all tokens.

    Raises:
        ValueError: for a text without tokens, or a tokenizer that can't say where its tokens stand in the text.
        UnsupportedModelError: see `MemoryCache`.

    Example:
        >>> found = namm.inspect(model, tokenizer, text, memory)               # doctest: +SKIP
        >>> pandas.DataFrame(found.rows()).sort_values("kept")                 # doctest: +SKIP
    """
    policy = NAMMPolicy(policy) if isinstance(policy, NAMM) else policy
    shown = name or policy.name
    ids, spans = _read(tokenizer, text, tokens)
    watched = _Watched.of(policy, len(spans)) if type(policy) is NAMMPolicy else policy
    cache = MemoryCache(model, watched)
    total = len(spans)
    interval = policy.update_interval or total
    updates: list[int] = []
    forgotten: np.ndarray | None = None
    for start in range(0, total, interval):
        end = min(start + interval, total)
        model(ids[:, start:end].to(model.device), past_key_values=cache, logits_to_keep=1)
        if end == total:
            cache.settle()
        updates.append(end)
        held = cache.positions()
        if forgotten is None:
            forgotten = np.zeros((len(held), len(held[0][0]), total), dtype=np.int16)
        for layer, rows in enumerate(held):
            for head, positions in enumerate(rows[0]):
                forgotten[layer, head, positions.cpu().numpy()] = len(updates)
        progress(end, total)
    stats = cache.stats()
    scores = spectrogram = None
    if isinstance(watched, _Watched):
        scores, spectrogram = watched.scored(stats.layers)
    assert forgotten is not None  # there is at least one token
    return Inspection(
        shown,
        text[: spans[-1, 1]],
        spans,
        stats.layers,
        tuple(updates),
        forgotten,
        scores,
        spectrogram,
        stats,
    )


def _read(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int | None) -> tuple[Tensor, np.ndarray]:
    """Ids ``[1, tokens]``, and where they stand in the text, without overlap."""
    try:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ValueError(f"{type(tokenizer).__name__} can't say where its tokens stand in a text: {error}") from error
    if not found["input_ids"]:
        raise ValueError("the text is empty: there is nothing to inspect")
    ids = with_beginning(tokenizer, found["input_ids"])
    unwritten = [(0, 0)] * (len(ids) - len(found["input_ids"]))
    ids, spans = ids[:tokens], np.array([*unwritten, *found["offset_mapping"]][:tokens], dtype=np.int64)
    ends = np.maximum.accumulate(spans[:, 1])
    return torch.tensor([ids]), np.stack([np.maximum(spans[:, 0], np.r_[0, ends[:-1]]).clip(max=ends), ends], axis=1)


def _mean_over_heads(values: np.ndarray) -> np.ndarray:
    """Mean over the first two dimensions of what is not NaN; NaN where all are."""
    count = (~np.isnan(values)).sum((0, 1))
    return np.where(count > 0, np.nansum(values, (0, 1)) / np.maximum(count, 1), np.nan)


class _Watched(NAMMPolicy):
    """A memory's policy that writes down how each head last judged each token; it decides as ever."""

    _tokens: int
    _scores: dict[tuple[int, int], Tensor]  # by layer and head, [tokens]
    _spectrograms: dict[tuple[int, int], Tensor]  # [tokens, len(ema), bins]

    @classmethod
    def of(cls, policy: NAMMPolicy, tokens: int) -> _Watched:
        watched = cls(policy.memory, policy.offset, policy.kept, policy.budget, policy.cap)
        watched._tokens, watched._scores, watched._spectrograms = tokens, {}, {}
        return watched

    def note(self, heads: Sequence[Head], scores: Sequence[Tensor], keep: Sequence[Tensor]) -> None:
        for head, margin in zip(heads, self.margins(heads, scores, keep), strict=True):
            place, judged = (head.layer, head.index), head.first(head.tokens - head.undecided)
            positions, spectrogram = judged.positions.long().cpu(), judged.columns["spectrogram"]
            if place not in self._scores:
                self._scores[place] = torch.full((self._tokens,), torch.nan)
                self._spectrograms[place] = torch.zeros(self._tokens, *spectrogram.shape[1:], dtype=torch.float16)
            self._scores[place][positions] = margin[: len(positions)].float().cpu()
            self._spectrograms[place][positions] = spectrogram.to("cpu", torch.float16)

    def scored(self, layers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """`Inspection.scores` and `Inspection.spectrogram`; None if nothing was judged."""
        if not self._scores:
            return None, None
        heads = 1 + max(head for _, head in self._scores)
        scores = torch.stack([self._scores[layer, head] for layer in layers for head in range(heads)])
        judged = (~scores.isnan()).sum(0).clamp_min(1)
        total = sum(spectrogram.float() for spectrogram in self._spectrograms.values())
        return scores.reshape(len(layers), heads, -1).numpy(), (total / judged[:, None, None]).numpy()
