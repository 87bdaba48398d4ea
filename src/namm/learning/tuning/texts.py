"""What a model learns from: tokens that are read, and those whose prediction counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.learning.passages import Passage
from namm.tasks.sample import Sample

NOT_COUNTED = -100
"""In place of a token that need not be predicted, as torch's cross entropy has it."""
TOGETHER = 8
"""Questions about one context at most that are learned in one text."""


@dataclass(frozen=True, eq=False)
class Text:
    """A context, on which the memory decides, and what comes after it.

    Attributes:
        context: ``[tokens]`` int64, may be empty.
        rest: ``[tokens]`` int64, likewise.
        scored: so many of the last tokens are to be predicted.
        counts: ``[scored]`` bool, which of these after all; None: all.
    """

    context: Tensor
    rest: Tensor
    scored: int
    counts: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.context) + len(self.rest):
            raise ValueError(f"{self.scored} tokens to be predicted of {len(self.context) + len(self.rest)}")
        if self.counts is not None and (len(self.counts) != self.scored or not self.counts.any()):
            raise ValueError(f"counts say which of {self.scored} tokens count, at least one; got {self.counts}")

    @property
    def inputs(self) -> Tensor:
        """``[tokens]``, all but the last."""
        return torch.cat([self.context, self.rest])[:-1]

    @property
    def wanted(self) -> Tensor:
        """``[scored]``, the tokens to be predicted, or `NOT_COUNTED`; the last inputs predict them."""
        last = torch.cat([self.context, self.rest])[-self.scored :]
        return last if self.counts is None else last.where(self.counts, NOT_COUNTED)

    @property
    def counted(self) -> int:
        """How many tokens are to be predicted."""
        return self.scored if self.counts is None else int(self.counts.sum())

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Inputs ``[at most size]``; what the last of these predict, ``[n]``; and whether the context ends there."""
        inputs, wanted, end = self.inputs, self.wanted, min(len(self.context), len(self.inputs))
        stops = [*range(size, end, size), end, *range(end + size, len(inputs), size), len(inputs)]
        start, first = 0, len(inputs) - self.scored
        for stop in sorted(set(stops) - {0}):
            yield inputs[start:stop], wanted[max(0, start - first) : max(0, stop - first)], stop == end
            start = stop


def plain_text(passage: Passage) -> Text:
    """Every token is to be predicted."""
    ids = passage.ids[0]
    return Text(ids[:0], ids, len(ids) - 1)


def asked_text(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> Text:
    """Questions about one context, each followed by its answer, which is to be predicted, and that the last ends, where
    the tokenizer knows an end.

    Args:
        samples: of one context, at least one.
        most: tokens of the context, which is cut in its middle.
    """
    context = samples[0].token_ids(tokenizer)[0][0]
    if most is not None and len(context) > most:
        context = torch.cat([context[: most - most // 2], context[len(context) - most // 2 :]])
    parts, counts = list[Tensor](), list[Tensor]()
    for number, sample in enumerate(samples, 1):
        _, question, answer = (part[0] for part in sample.token_ids(tokenizer))
        if number == len(samples) and tokenizer.eos_token_id is not None:
            answer = torch.cat([answer, torch.tensor([tokenizer.eos_token_id])])
        parts += [question, answer]
        counts += [torch.zeros(len(question), dtype=torch.bool), torch.ones(len(answer), dtype=torch.bool)]
    since_first = torch.cat(counts[1:])  # the first question is read only
    return Text(context, torch.cat(parts), len(since_first), since_first if len(samples) > 1 else None)


def asked_texts(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> list[Text]:
    """`asked_text` of each context: questions about the one before them are learned with it, up to `TOGETHER`.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("there are no questions to learn from: give a .jsonl file of contexts, inputs and answers")
    found = list[Text]()
    for _, group in groupby(samples, key=lambda sample: sample.context):
        about = list(group)
        most_asked = TOGETHER if about[0].context else 1  # without a context nothing is read once for all
        found += [asked_text(about[i : i + most_asked], tokenizer, most) for i in range(0, len(about), most_asked)]
    return found
