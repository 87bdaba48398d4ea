"""What a model learns from: tokens that are read, and those whose prediction counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.learning.passages import Passage
from namm.tasks.sample import Sample


@dataclass(frozen=True, eq=False)
class Text:
    """A context, on which the memory decides, and what comes after it.

    Attributes:
        context: ``[tokens]`` int64, may be empty.
        rest: ``[tokens]`` int64, likewise.
        scored: so many of the last tokens are to be predicted.
    """

    context: Tensor
    rest: Tensor
    scored: int

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.context) + len(self.rest):
            raise ValueError(f"{self.scored} tokens to be predicted of {len(self.context) + len(self.rest)}")

    @property
    def inputs(self) -> Tensor:
        """``[tokens]``, all but the last."""
        return torch.cat([self.context, self.rest])[:-1]

    @property
    def wanted(self) -> Tensor:
        """``[scored]``, the tokens to be predicted; the last inputs predict them."""
        return torch.cat([self.context, self.rest])[-self.scored :]

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


def asked_text(sample: Sample, tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> Text:
    """An answer is to be predicted, and that it ends, where the tokenizer knows an end.

    Args:
        most: tokens of the context, which is cut in its middle.
    """
    context, question, answer = (part[0] for part in sample.token_ids(tokenizer))
    if most is not None and len(context) > most:
        context = torch.cat([context[: most - most // 2], context[len(context) - most // 2 :]])
    if tokenizer.eos_token_id is not None:
        answer = torch.cat([answer, torch.tensor([tokenizer.eos_token_id])])
    return Text(context, torch.cat([question, answer]), len(answer))


def asked_texts(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> list[Text]:
    """`asked_text` of each.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("there are no questions to learn from: give a .jsonl file of contexts, inputs and answers")
    return [asked_text(sample, tokenizer, most) for sample in samples]
