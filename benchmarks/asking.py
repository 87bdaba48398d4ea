"""Answers about a text that was read before, in the process that read it or in another."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import namm
from namm.tasks.answering import padding_token

Asked = tuple[Tensor, list[Tensor]]  # the text, and the questions, [1, tokens] each


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, ids: Tensor, question: Tensor, cache: Any, new_tokens: int) -> list[int]:
    """What follows greedily on a text and a question, of which the cache has read the text."""
    whole = torch.cat([ids, question], dim=1).to(model.device)
    output = model.generate(
        whole,
        attention_mask=torch.ones_like(whole),
        past_key_values=cache,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=padding_token(tokenizer),
    )
    found: list[int] = output[0, whole.shape[1] :].tolist()
    return found


def ask_saved(
    name: str, device: str | None, folder: str, asked: Asked, new_tokens: int
) -> tuple[list[list[int]], float, float]:
    """Answers of a saved cache in this process, seconds to load it (not the model), and to answer."""
    model, tokenizer = namm.load_model(name, device=device)
    started = time.perf_counter()
    cache = namm.MemoryCache.load(model, folder, tokenizer)
    loading, started = time.perf_counter() - started, time.perf_counter()
    ids, questions = asked
    answers = [answer(model, tokenizer, ids, question, cache.fork(), new_tokens) for question in questions]
    return answers, loading, time.perf_counter() - started
