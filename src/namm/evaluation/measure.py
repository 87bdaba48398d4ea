"""One document, one policy: what the model loses."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from namm.cache import MemoryCache
from namm.policies.base import Policy


@dataclass(frozen=True)
class Tail:
    """Loss of a document's end, given what a policy kept of its beginning.

    Attributes:
        loss: nats a token, mean over the tail.
        kept_fraction: tokens kept over tokens seen when the tail begins.
        held_bytes, kv_bytes: what the cache held then, see `CacheStats`.
        seconds: wall time of the prefill.
    """

    loss: float
    kept_fraction: float
    held_bytes: int
    kv_bytes: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    """How well an answer was recalled.

    Attributes:
        log_probability: mean over the answer's tokens, nats.
        correct: every token of it was the model's first choice, as greedy decoding would give it.
        kept_fraction: tokens kept over tokens seen when the question came.
    """

    log_probability: float
    correct: bool
    kept_fraction: float


@torch.inference_mode()
def tail_loss(model: PreTrainedModel, ids: Tensor, policy: Policy, tail: int = 256) -> Tail:
    """Prefill all but the last `tail` tokens under a policy, then score the tail, teacher-forced.

    The policy decides once more where the tail begins (`MemoryCache.settle`), so that a budget holds there. The tail's
    own tokens come in one call and are seen by the policy like any others.

    Args:
        ids: ``[1, tokens]`` with more than ``tail + 1`` tokens.

    Raises:
        ValueError: if the document is too short.
    """
    context = ids.shape[1] - tail
    if tail < 1 or context < 1:
        raise ValueError(f"a document of {ids.shape[1]} tokens can't be split before a tail of {tail}")
    ids = ids.to(model.device)
    cache = MemoryCache(model, policy)
    started = time.perf_counter()
    last = model(ids[:, :context], past_key_values=cache, logits_to_keep=1).logits
    cache.settle()
    _synchronise(ids)
    seconds = time.perf_counter() - started
    stats = cache.stats()
    logits = torch.cat([last, model(ids[:, context:-1], past_key_values=cache).logits], dim=1) if tail > 1 else last
    loss = F.cross_entropy(logits[0].float(), ids[0, context:])
    return Tail(float(loss), stats.kept_fraction, stats.held_bytes, stats.kv_bytes, seconds)


@torch.inference_mode()
def answer_score(model: PreTrainedModel, context: Tensor, question: Tensor, answer: Tensor, policy: Policy) -> Answer:
    """Prefill the context under a policy, which has not seen the question, then score the answer, teacher-forced.

    The policy decides once more where the context ends (`MemoryCache.settle`), so that its budget holds there.

    Args:
        context, question, answer: ``[1, tokens]`` each.
    """
    device = model.device
    cache = MemoryCache(model, policy)
    model(context.to(device), past_key_values=cache, logits_to_keep=1)
    cache.settle()
    kept = cache.stats().kept_fraction
    log_probability, correct = recalled(model, question.to(device), answer.to(device), cache)
    return Answer(log_probability, correct, kept)


def recalled(model: PreTrainedModel, question: Tensor, answer: Tensor, cache: MemoryCache) -> tuple[float, bool]:
    """Mean log-probability of an answer after a question, and whether each of its tokens was the first choice.

    Args:
        question, answer: ``[1, tokens]`` each, to be read on top of what the cache holds.
    """
    asked = torch.cat([question, answer], dim=1)
    logits = model(asked, past_key_values=cache).logits[0, question.shape[1] - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(1, answer[0][:, None])
    return float(chosen.mean()), bool((logits.argmax(-1) == answer[0]).all())


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
