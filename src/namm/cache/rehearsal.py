"""Rehearsal: a model repeats what it has just read, and what it looks at then is noted before anything is forgotten.

Reading goes in blocks of the policy's update interval. Before a block is decided on, the model reads an instruction and
the block once more, in a cache that is thrown away (`Repetition`). The largest attention that a query of it pays to a
token of the block goes into the policy's column `REHEARSED`, as in KVzip (arXiv 2505.23416):

    rehearsed_j = max_i  exp(q_i . k_j) / sum_l exp(q_i . k_l)

over the repetition's queries i, of all query heads of the KV head; l are the head's first tokens, the block, and the
repetition up to i. Every token goes through the model twice; a block and its repetition are held besides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache.layer import MemoryLayer
from namm.cache.repetition import Repetition

if TYPE_CHECKING:
    from namm.cache.cache import MemoryCache

CUE = 8  # tokens of the block before, from which a repetition begins: they tell the model what to repeat


@dataclass
class Text:
    """The real tokens of one batch row.

    Attributes:
        ids: ``[tokens]``.
        columns: ``[tokens]``, where they are in the batch.
        read: how many so far.
        decided: how many of these were decided on.
    """

    ids: Tensor
    columns: Tensor
    read: int = 0
    decided: int = 0

    def again(self) -> Tensor:
        """What is repeated: what is not decided on, behind its cue."""
        return self.ids[max(0, self.decided - CUE) : self.read]

    def end(self, room: int) -> int | None:
        """The column behind the next `room` tokens; None if there are fewer."""
        last = self.read + room - 1
        return int(self.columns[last]) + 1 if last < len(self.columns) else None


@dataclass
class Rehearsal:
    """One text, read into a cache with a rehearsal of every block.

    Attributes:
        ids: ``[rows, tokens]``.
        mask: ``[rows, columns + tokens]`` bool, which of the columns that the cache has seen and of the text are real.
        instruction: ``[tokens]``, comes before every repetition.
        progress: called with the number of columns read.
        texts: of each row.
    """

    cache: MemoryCache
    model: PreTrainedModel
    ids: Tensor
    mask: Tensor
    instruction: Tensor
    progress: Callable[[int], object]
    texts: list[Text]

    @classmethod
    def of(
        cls,
        cache: MemoryCache,
        ids: Tensor,
        instruction: Tensor,
        mask: Tensor | None,
        progress: Callable[[int], object],
    ) -> Rehearsal:
        """Of a text, and a mask ``[rows, tokens]`` of it."""
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        columns = [row.nonzero().squeeze(-1) for row in real]
        texts = [Text(row[own], own) for row, own in zip(ids, columns, strict=True)]
        before = cache.padding.before(cache.get_seq_length(), len(ids)).to(ids.device)
        return cls(
            cache, cache.model, ids, torch.cat([before, real], dim=1), instruction.to(ids.device), progress, texts
        )

    @property
    def layers(self) -> list[MemoryLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, MemoryLayer)]

    def room(self) -> list[int]:
        """Tokens that each row takes before it is to be decided on."""
        rows, interval = self.layers[0].rows, self.cache.policy.update_interval
        assert interval is not None, "a policy that rehearses decides"
        return [row.room(interval) for row in rows] or [interval] * len(self.texts)

    def read(self) -> Tensor:
        """Read the text and decide on all of it; logits of what comes next, ``[rows, vocabulary]``."""
        ((logits, _),) = deque(self.passes(), maxlen=1)
        return logits

    def passes(self) -> Iterator[tuple[Tensor, int]]:
        """`read`, in parts between which others may use the model: a block, its repetition, the next block.

        Gives the logits of what comes after the text so far, and how many tokens went through the model for this part.
        """
        length, stop = self.ids.shape[1], 0
        before = self.mask.shape[1] - length
        while stop < length:
            ends = [text.end(free) for text, free in zip(self.texts, self.room(), strict=True)]
            start, stop = stop, min([end for end in ends if end is not None], default=length)
            mask = self.mask[:, : before + stop]
            with waiting(self.layers):
                logits = self._forward(self.ids[:, start:stop], self.cache, mask)
            yield logits, stop - start
            repeats = 0
            for text in self.texts:
                text.read = int((text.columns < stop).sum())
            due = [row for row, free in enumerate(self.room()) if not free or stop == length]
            for fresh, rows in self._together(due):
                repeated = torch.stack([torch.cat([self.instruction, self.texts[row].again()]) for row in rows])
                whole = torch.cat([mask[rows], torch.ones_like(repeated, dtype=torch.bool)], dim=1)
                self._forward(repeated, Repetition(self.cache, rows, fresh), whole)
                repeats += repeated.shape[1]
            self.cache.settle(due)
            for row in due:
                self.texts[row].decided = self.texts[row].read
            self.progress(stop)
            yield logits, repeats

    def _together(self, rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Rows that repeat equally many tokens behind a cue of the same length, and how many of their newest."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            text = self.texts[row]
            if text.read > text.decided:
                groups.setdefault((text.read - text.decided, min(CUE, text.decided)), []).append(row)
        for (fresh, _), together in groups.items():
            yield fresh, together

    def _forward(self, ids: Tensor, cache: Any, mask: Tensor) -> Tensor:
        """Logits of the last of the new tokens ``[rows, tokens]``; the mask covers what came before as well."""
        options = dict[str, Any]()
        if not bool(mask.all()):
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            options = {"attention_mask": mask.long(), "position_ids": positions}
        logits: Tensor = self.model(ids, past_key_values=cache, logits_to_keep=1, **options).logits
        return logits[:, -1]


@contextmanager
def waiting(layers: Sequence[MemoryLayer]) -> Iterator[None]:
    """While it lasts, no block ends by itself; a call may bring no more tokens than there is room for."""
    for layer in layers:
        layer.waits = True
    try:
        yield
    finally:
        for layer in layers:
            layer.waits = False
