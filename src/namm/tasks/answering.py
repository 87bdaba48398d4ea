"""Reading under a policy, deciding what to keep, and answering: what every measurement of a memory does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from namm.cache import MemoryCache
from namm.cache.stats import CacheStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from namm.policies.base import Policy

PIECE = 512  # tokens fed at once to a policy that compares layers after every pass


@dataclass(frozen=True, eq=False)
class Reading:
    """Contexts in a cache whose policy has decided what to keep of them, and has not seen what is asked.

    It can be asked once, since questions and answers go into the cache too; each `fork` of it once more.

    Attributes:
        ids: ``[rows, tokens]`` int64, padded on the left.
        mask: ``[rows, tokens]`` int64, 0 for padding.
        pad: the padding.
        logits: ``[rows, vocabulary]`` of the token that comes next.
        stats: what the cache held after the decision.
    """

    model: PreTrainedModel
    cache: MemoryCache
    ids: Tensor
    mask: Tensor
    pad: int
    logits: Tensor
    stats: CacheStats

    def fork(self) -> Reading:
        """The same contexts, to be asked something else (`MemoryCache.fork`)."""
        return replace(self, cache=self.cache.fork())

    @torch.inference_mode()
    def score(self, question: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """An answer after a question, teacher-forced, the same two in every row.

        Args:
            question: ``[tokens]``, may be empty.
            answer: ``[tokens]``, at least one.

        Returns:
            ``[rows, tokens]`` each: log-probabilities of the answer's tokens, float32 nats, and whether each was the
            model's first choice.

        Raises:
            ValueError: for an answer of no tokens, or contexts of several lengths.
        """
        if not len(answer):
            raise ValueError("an answer of no tokens can't be scored")
        if not bool(self.mask.all()):
            raise ValueError("an answer is scored after contexts of one length; read them one by one")
        asked = torch.cat([question, answer[:-1]]).to(self.ids.device)
        logits = self.logits[:, None]
        if len(asked):
            rows = asked.expand(len(self.ids), -1)
            more = self.model(rows, past_key_values=self.cache, logits_to_keep=len(answer)).logits
            logits = more if len(question) else torch.cat([logits, more], dim=1)
        wanted = answer.to(self.ids.device).expand(len(self.ids), -1)
        chosen = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        return chosen, logits.argmax(-1) == wanted

    @torch.inference_mode()
    def generate(self, questions: Sequence[Tensor], new_tokens: int) -> Tensor:
        """Greedy answers, ``[rows, at most new_tokens]``; a row that ends early goes on with padding.

        Args:
            questions: ``[tokens]`` each, at least one token; one for each row, or one for all.
        """
        ids, mask = _left_padded(questions, self.pad, self.ids.device)
        whole = torch.cat([self.ids, ids.expand(len(self.ids), -1)], dim=1)
        generated: Tensor = self.model.generate(  # type: ignore[operator]  # transformers' annotations lack it
            whole,
            attention_mask=torch.cat([self.mask, mask.expand(len(self.ids), -1)], dim=1),
            past_key_values=self.cache,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=self.pad,
        )
        return generated[:, whole.shape[1] :]


@torch.inference_mode()
def read(
    model: PreTrainedModel,
    contexts: Sequence[Tensor],
    policy: Policy,
    *,
    pad: int = 0,
    rehearse: Tensor | None = None,
    bits: int | None = None,
    engine: str = "loops",
) -> Reading:
    """Read contexts in one batch, and decide at their end what to keep (`MemoryCache.settle`).

    Args:
        contexts: ``[tokens]`` each, at least one token.
        pad: token that fills up shorter contexts, see `padding_token`.
        rehearse: with a rehearsal, if the policy looks at one: the instruction, see `namm.tasks.encode.to_repeat`.
        bits: of keys and values, see `MemoryCache`. engine: likewise.
    """
    ids, mask = _left_padded(contexts, pad, model.device)
    cache = MemoryCache(model, policy, engine, bits)
    options = dict[str, Any]()
    if not bool(mask.all()):
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    if rehearse is not None and policy.rehearses:
        logits = cache.rehearse(ids, rehearse, mask)
        return Reading(model, cache, ids, mask, pad, logits, cache.stats())
    whole_text = not policy.trims or bool(options)  # else in pieces, so that little lies on top of a budget
    for piece in [ids] if whole_text else ids.split(PIECE, dim=1):
        logits = model(piece, past_key_values=cache, logits_to_keep=1, **options).logits[:, -1]
    cache.settle()
    return Reading(model, cache, ids, mask, pad, logits, cache.stats())


@dataclass(frozen=True)
class Answer:
    """How well an answer was recalled.

    Attributes:
        log_probability: mean over the answer's tokens, nats.
        correct: every token of it was the model's first choice, as greedy decoding would give it; what the model would
            say after it is not looked at.
        kept_fraction: tokens kept over tokens seen when the question came.
    """

    log_probability: float
    correct: bool
    kept_fraction: float


def answer_score(
    model: PreTrainedModel,
    context: Tensor,
    question: Tensor,
    answer: Tensor,
    policy: Policy,
    rehearse: Tensor | None = None,
    bits: int | None = None,
) -> Answer:
    """Read a context under a policy, which has not seen the question, then score the answer, teacher-forced.

    Args:
        context: ``[1, tokens]``.
        question: ``[1, tokens]``.
        answer: ``[1, tokens]``.
        rehearse: see `read`; so is `bits`.
    """
    reading = read(model, [context[0]], policy, rehearse=rehearse, bits=bits)
    found, correct = reading.score(question[0], answer[0])
    return Answer(float(found.mean()), bool(correct.all()), reading.stats.kept_fraction)


@dataclass(frozen=True)
class Tail:
    """Loss of a document's end, given what a policy kept of its beginning.

    Attributes:
        loss: nats a token, mean over the tail.
        kept_fraction: tokens kept over tokens seen when the tail begins.
        held_bytes: what the cache held then, see `CacheStats`.
        kv_bytes: of these keys and values.
        seconds: wall time of the prefill.
    """

    loss: float
    kept_fraction: float
    held_bytes: int
    kv_bytes: int
    seconds: float


def tail_loss(
    model: PreTrainedModel,
    ids: Tensor,
    policy: Policy,
    tail: int = 256,
    rehearse: Tensor | None = None,
    bits: int | None = None,
) -> Tail:
    """Read all but the last `tail` tokens under a policy, then score the tail, teacher-forced.

    The tail's own tokens come in one call and are seen by the policy like any others.

    Args:
        ids: ``[1, tokens]`` with more than `tail` tokens.
        rehearse: see `read`; so is `bits`.

    Raises:
        ValueError: if the document is too short.
    """
    context = ids.shape[1] - tail
    if tail < 1 or context < 1:
        raise ValueError(f"a document of {ids.shape[1]} tokens can't be split before a tail of {tail}")
    started = time.perf_counter()
    reading = read(model, [ids[0, :context]], policy, rehearse=rehearse, bits=bits)
    if reading.logits.is_cuda:
        torch.cuda.synchronize(reading.logits.device)
    seconds, stats = time.perf_counter() - started, reading.stats
    found, _ = reading.score(ids[0, :0], ids[0, context:])
    return Tail(-float(found.mean()), stats.kept_fraction, stats.held_bytes, stats.kv_bytes, seconds)


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills up shorter prompts: the tokenizer's padding, else its end, else token 0; it is masked."""
    return next(int(token) for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)


def _left_padded(rows: Sequence[Tensor], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[rows, tokens]`` ids, and the mask that calls padding 0."""
    ids, mask = (
        pad_sequence(parts, batch_first=True, padding_value=filler, padding_side="left").to(device)
        for parts, filler in ((list(rows), pad), ([torch.ones_like(row) for row in rows], 0))
    )
    return ids, mask
