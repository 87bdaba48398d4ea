"""What a model replies to the prompts of a benchmark, under a policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from namm.tasks.answering import padding_token, read
from namm.tasks.chat import chat_parts
from namm.tasks.encode import encode, to_repeat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from namm.evaluation.benchmarks.base import Question, Task
    from namm.policies.base import Policy


@dataclass(frozen=True)
class Prompt:
    """Token ids ``[tokens]`` of what is read first and of what comes after it (at least one token)."""

    context: Tensor
    question: Tensor

    def cut_in_the_middle(self, tokens: int) -> Prompt:
        """The prompt within so many tokens: the middle of the context goes, as LongBench and others publish it.

        Raises:
            ValueError: if the question alone is longer.
        """
        room = tokens - len(self.question)
        if len(self.context) <= room:
            return self
        if room < 1:
            raise ValueError(f"a question of {len(self.question)} tokens leaves no room for a context within {tokens}")
        last = len(self.context) - room + room // 2
        return Prompt(torch.cat([self.context[: room // 2], self.context[last:]]), self.question)


def prompt_of(tokenizer: PreTrainedTokenizerBase, task: Task, question: Question, *, chat: bool = False) -> Prompt:
    """The tokens of a question's prompt.

    Args:
        chat: in the model's chat template, unless the task's prompts are texts to go on with.

    Raises:
        ValueError: if the context is empty, or the tokenizer's template does not serve (see `chat_parts`).
    """
    if not question.context.strip():
        raise ValueError("the context is empty")
    parts = question.context, question.question
    if chat and not task.goes_on:
        parts = chat_parts(tokenizer, *parts)
    context, asked = encode(tokenizer, parts[0])[0], encode(tokenizer, parts[1], begins=False)[0]
    if not len(asked):  # something must come after the decision
        context, asked = context[:-1], context[-1:]
    if not len(context):
        raise ValueError("the context is empty")
    return Prompt(context, asked)


@dataclass(frozen=True)
class Reply:
    """What came of one prompt.

    Attributes:
        text: generated, without special tokens; empty where the reference was scored.
        log_probability: of the reference's tokens, mean, nats; None where text was generated.
        kept_fraction: tokens kept over tokens seen, once the prompt's memory was decided.
        held_fraction: bytes that the cache held then over those of a full cache's keys and values, of the whole batch.
        seconds: of the whole batch, over its size.
    """

    text: str
    log_probability: float | None
    kept_fraction: float
    held_fraction: float
    seconds: float


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    new_tokens: int,
    question_seen: bool = False,
    rehearse: bool = False,
    reference: Tensor | None = None,
) -> list[Reply]:
    """Read prompts under a policy in one batch, decide what to keep, and answer greedily.

    Args:
        question_seen: decide after the question, else before it comes; either way what the prompt leaves in the cache
            is then all the policy's choice.
        rehearse: with a rehearsal, if the policy looks at one; one that needs it is given it anyway.
        reference: ``[tokens]``, for a single prompt: score these tokens, teacher-forced, and generate nothing.
    """
    if reference is not None and len(prompts) != 1:
        raise ValueError(f"a reference is scored for one prompt, got {len(prompts)}")
    started = time.perf_counter()
    if question_seen:  # but for its last token, which comes after the decision
        prompts = [Prompt(torch.cat([p.context, p.question[:-1]]), p.question[-1:]) for p in prompts]
    instruction = to_repeat(tokenizer) if rehearse or policy.needs_rehearsal else None
    contexts, pad = [p.context for p in prompts], padding_token(tokenizer)
    reading = read(model, contexts, policy, pad=pad, rehearse=instruction)
    texts, log_probability = [""] * len(prompts), None
    if reference is not None:
        log_probability = float(reading.score(prompts[0].question, reference)[0].mean())
    else:
        generated = reading.generate([p.question for p in prompts], new_tokens)
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in generated]
    seconds, stats = (time.perf_counter() - started) / len(prompts), reading.stats
    held = stats.held_bytes / stats.full_bytes
    return [
        Reply(text, log_probability, kept, held, seconds)
        for text, kept in zip(texts, stats.kept_fractions, strict=True)
    ]
