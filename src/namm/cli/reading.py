"""A prompt: encoded as its model expects it, read with progress, decided on where it ends, and answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from namm.cache import MemoryCache
    from namm.cli.progress import Update

CHUNK = 512  # tokens fed at once: the progress moves, and what is kept is the same


def encode_prompt(
    tokenizer: Any, texts: Sequence[str | None], question: str | None = None, *, raw: bool = False
) -> Tensor:
    """Token ids ``[1, tokens]`` of texts and a question, blank lines between them, as a user's turn of a chat.

    Args:
        raw: without the tokenizer's chat template, to be continued, as where it has none.
    """
    from namm.tasks.chat import ask, has_chat, in_chat
    from namm.tasks.encode import encode

    before, chat = any(texts), not raw and has_chat(tokenizer)
    asked = ask(question) if chat and question and before else question
    message = "\n\n".join(part for part in (*texts, asked) if part)
    return encode(tokenizer, in_chat(tokenizer, message) if chat else message)


def read(
    model: Any,
    ids: Tensor,
    cache: MemoryCache,
    progress: Update,
    stage: str = "reading",
    decide: bool = True,
    rehearse: Tensor | None = None,
) -> None:
    """Feed ``[1, tokens]`` to the model, and decide on what they leave in the cache.

    Args:
        decide: else what came since the last update stays until the next.
        rehearse: with a rehearsal, which always decides: the instruction, see `MemoryCache.rehearse`.
    """
    total = ids.shape[1]
    if not total:
        return
    progress(stage, 0, total)
    if rehearse is not None:
        cache.rehearse(ids, rehearse, progress=lambda done: progress(stage, done, total))
        return
    for start in range(0, total, CHUNK):
        model(ids[:, start : start + CHUNK], past_key_values=cache, logits_to_keep=1)
        progress(stage, min(start + CHUNK, total), total)
    if decide:
        cache.settle()


def answer(model: Any, tokenizer: Any, ids: Tensor, cache: MemoryCache, new_tokens: int, **options: Any) -> Tensor:
    """Greedily chosen token ids that follow ``[1, tokens]``, of which the cache has read all but some at the end."""
    import torch

    from namm.tasks.answering import padding_token

    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=padding_token(tokenizer),
        **options,
    )
    return output[0, ids.shape[1] :]


class Clock:
    """A stopping criterion that never stops, and notes when the first and the last token came."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return input_ids.new_zeros(len(input_ids), dtype=bool)

    @property
    def prefill(self) -> float:
        return (self.first or self.last) - self.started

    @property
    def decode(self) -> float:
        return self.last - (self.first or self.last)
