"""What a model learns from: tokens that are read, and those whose prediction counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.learning.passages import Passage
from namm.tasks.encode import encode
from namm.tasks.sample import Sample

NOT_COUNTED = -100
"""In place of a token that need not be predicted, as torch's cross entropy has it."""
TOGETHER = 255
"""Tokens of questions and answers about one context at most that are learned in one text, unless one alone has more:
fewer than a memory that decides on 256 at once would decide on."""

Asked = tuple[list[int], list[int]]
"""A question and its answer."""


@dataclass(frozen=True, eq=False)
class Text:
    """A context, on which the memory decides, and what comes after it.

    Attributes:
        context: ``[tokens]`` int64, may be empty.
        rest: ``[tokens]`` int64, likewise.
        scored: so many of the last inputs are to predict something.
        targets: ``[scored]`` int64, what that is, `NOT_COUNTED` for nothing; None: the tokens that follow them.
    """

    context: Tensor
    rest: Tensor
    scored: int
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.context) + len(self.rest):
            raise ValueError(f"{self.scored} tokens to be predicted of {len(self.context) + len(self.rest)}")
        if self.targets is not None and (len(self.targets) != self.scored or not self.counted):
            raise ValueError(f"targets must say what {self.scored} inputs predict, at least one; got {self.targets}")

    @property
    def inputs(self) -> Tensor:
        """``[tokens]``, all but the last."""
        return torch.cat([self.context, self.rest])[:-1]

    @property
    def wanted(self) -> Tensor:
        """``[scored]``, what the last inputs are to predict, or `NOT_COUNTED`."""
        return torch.cat([self.context, self.rest])[-self.scored :] if self.targets is None else self.targets

    @property
    def counted(self) -> int:
        """How many tokens are to be predicted."""
        return int((self.wanted != NOT_COUNTED).sum())

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


def asked_texts(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> list[Text]:
    """Answers are to be predicted, and that each ends, where the tokenizer knows an end.

    A question about the context of the one before is learned in one text with it, as far as `TOGETHER` allows.

    Args:
        most: tokens of a context, which is cut in its middle.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("there are no questions to learn from: give a .jsonl file of contexts, inputs and answers")
    groups, room = list[tuple[str, list[Asked]]](), 0
    for sample in samples:
        question, answer = (part[0].tolist() for part in sample.asked_ids(tokenizer))
        length = len(question) + len(answer)
        if groups and sample.context and sample.context == groups[-1][0] and question and length <= room:
            groups[-1][1].append((question, answer))
            room -= length
        else:
            groups.append((sample.context, [(question, answer)]))
            room = TOGETHER - length
    found = []
    for words, asked in groups:
        context = encode(tokenizer, words)[0]
        if most is not None and len(context) > most:
            context = torch.cat([context[: most - most // 2], context[len(context) - most // 2 :]])
        found.append(_asked_text(context, asked, tokenizer.eos_token_id))
    return found


def _asked_text(context: Tensor, asked: Sequence[Asked], end: int | None) -> Text:
    """Questions about one context, each followed by its answer; the first question is read only."""
    rest, targets = list[int](), list[int]()
    for question, answer in asked:
        nothing = [NOT_COUNTED] * len(question)
        if end is not None and targets:  # the answer before ends where this question begins
            nothing[:1] = [end]
        targets += [*nothing, *answer]
        rest += [*question, *answer]
    if end is not None:
        rest, targets = [*rest, end], [*targets, end]
    read_only = len(asked[0][0])
    several = torch.tensor(targets[read_only:]) if len(asked) > 1 else None
    return Text(context, torch.tensor(rest), len(rest) - read_only, several)
