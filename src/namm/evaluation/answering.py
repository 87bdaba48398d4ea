"""Answers of a model under a policy: generated, or how likely the reference is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from namm.cache import MemoryCache
from namm.evaluation.measure import recalled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        first = room // 2
        return Prompt(
            torch.cat([self.context[:first], self.context[len(self.context) - room + first :]]), self.question
        )


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


@torch.inference_mode()
def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    new_tokens: int,
    question_seen: bool = False,
    reference: Tensor | None = None,
) -> list[Reply]:
    """Read prompts under a policy in one batch, decide what to keep, and answer greedily.

    Args:
        question_seen: decide after the question, else before it comes; either way what the prompt leaves in the cache
            is then all the policy's choice (`MemoryCache.settle`).
        reference: ``[tokens]``, for a single prompt: score these tokens, teacher-forced, and generate nothing.
    """
    if reference is not None and len(prompts) != 1:
        raise ValueError(f"a reference is scored for one prompt, got {len(prompts)}")
    started = time.perf_counter()
    parts = (
        # the last token gives the first logits, so it comes after the decision
        [(torch.cat([p.context, p.question[:-1]]), p.question[-1:]) for p in prompts]
        if question_seen
        else [(p.context, p.question) for p in prompts]
    )
    pad = next(int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    first, first_mask = _left_padded([part[0] for part in parts], pad, model.device)
    second, second_mask = _left_padded([part[1] for part in parts], pad, model.device)
    mask = torch.cat([first_mask, second_mask], dim=1)
    padding: dict[str, Any] = {}
    if not bool(first_mask.all()):
        padding = {"attention_mask": first_mask, "position_ids": (first_mask.cumsum(1) - 1).clamp_min(0)}
    cache = MemoryCache(model, policy)
    model(first, past_key_values=cache, logits_to_keep=1, **padding)
    cache.settle()
    stats = cache.stats()
    texts, log_probability = [""] * len(prompts), None
    if reference is not None:
        log_probability, _ = recalled(model, second, reference[None].to(model.device), cache)
    else:
        whole = torch.cat([first, second], dim=1)
        generated = model.generate(  # type: ignore[operator]  # transformers' annotations lack it
            whole,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in generated[:, whole.shape[1] :]]
    seconds = (time.perf_counter() - started) / len(prompts)
    held = stats.held_bytes / stats.full_bytes
    return [
        Reply(text, log_probability, kept, held, seconds)
        for text, kept in zip(texts, stats.kept_fractions, strict=True)
    ]


def _left_padded(rows: Sequence[Tensor], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[batch, tokens]`` ids, and the mask that calls padding 0."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
