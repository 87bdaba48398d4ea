"""What a model learns from: tokens that are read, and those whose prediction counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


def asked_text(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> Text:
    """Questions about one context, each followed by its answer, which is to be predicted, and that it ends, where the
    tokenizer knows an end.

    Args:
        samples: of one context, at least one.
        most: tokens of the context, which is cut in its middle.
    """
    context, end = encode(tokenizer, samples[0].context)[0], tokenizer.eos_token_id
    if most is not None and len(context) > most:
        context = torch.cat([context[: most - most // 2], context[len(context) - most // 2 :]])
    rest, targets = list[int](), list[int]()
    for sample in samples:
        question, answer = _question_and_answer(sample, tokenizer)
        nothing = [NOT_COUNTED] * len(question)
        if end is not None and targets:  # the answer before ends where this question begins
            nothing[:1] = [end]
        targets += [*nothing, *answer]
        rest += [*question, *answer]
    if end is not None:
        rest, targets = [*rest, end], [*targets, end]
    asked = len(_question_and_answer(samples[0], tokenizer)[0])  # the first question is read only
    several = torch.tensor(targets[asked:]) if len(samples) > 1 else None
    return Text(context, torch.tensor(rest), len(rest) - asked, several)


def asked_texts(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> list[Text]:
    """`asked_text` of each context: a question about the one before it is learned with it, as far as `TOGETHER` allows.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("there are no questions to learn from: give a .jsonl file of contexts, inputs and answers")
    groups, room = [[samples[0]]], TOGETHER - _length(samples[0], tokenizer)
    for before, sample in pairwise(samples):
        length = _length(sample, tokenizer)
        if sample.context and sample.context == before.context and sample.question and length <= room:
            groups[-1].append(sample)
            room -= length
        else:
            groups.append([sample])
            room = TOGETHER - length
    return [asked_text(group, tokenizer, most) for group in groups]


def _question_and_answer(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    question, answer = (encode(tokenizer, text, begins=False)[0] for text in (sample.question, sample.answer))
    return question.tolist(), answer.tolist()


def _length(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> int:
    return sum(map(len, _question_and_answer(sample, tokenizer)))
