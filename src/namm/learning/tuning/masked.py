"""A text in one call under a mask of what a memory held: the gradients of `text_loss`, faster where calls are dear.

First the text is read without gradients, block by block, and what each head holds before each block is noted. Then all
of it goes through the model at once, and each query sees what its head held when its block was read. That takes the
bytes of a step on the full cache, and on a GPU a small part of the time of reading in pieces with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from namm.cache import MemoryCache, UnsupportedModelError
from namm.cache.serves import ATTENTION_DROPOUT
from namm.learning.tuning.texts import Text
from namm.policies.base import Policy

IMPLEMENTATION = "namm_masked"
"""Name of the attention implementation."""

PLAIN_ONLY = (
    "learning under a mask needs a model whose layers all forget, and attend without windows, softcap or sinks: learn "
    "in pieces instead"
)


@torch.no_grad()
def held_by_block(
    model: PreTrainedModel, text: Text, policy: Policy, piece: int, engine: str
) -> tuple[Tensor, list[Tensor]]:
    """What each head holds when a block of a text is read.

    Args:
        piece: tokens of a call at most. A policy that decides more often than that shortens it. A decision that falls
            within a call nevertheless (behind a context that ended with too few tokens to be decided on) counts from
            the next call on, while reading in pieces sees it at once.

    Returns:
        The block of each input, ``[tokens]`` int64, and of each layer ``[blocks, KV heads, tokens]`` bool.

    Raises:
        ValueError: for pieces after which the policy does not decide.
    """
    interval = policy.update_interval or piece
    if interval % min(piece, interval):
        raise ValueError(f"under a mask pieces must fill blocks of {interval} tokens: {piece} don't, {interval} do")
    cache = MemoryCache(model, policy, engine=engine)
    blocks, held, seen = list[Tensor](), list[list[list[Tensor]]](), 0
    for ids, _, settles in text.pieces(min(piece, interval)):
        held.append([rows[0] for rows in cache.positions()] if seen else [])
        model(ids[None].to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        blocks.append(torch.full((len(ids),), len(blocks), device=model.device))
        seen += len(ids)
        if settles:
            cache.settle()
    heads = [len(rows[0]) for rows in cache.positions()]
    found = [torch.zeros(len(held), count, seen, dtype=torch.bool, device=model.device) for count in heads]
    for block, layers in enumerate(held):
        for layer, rows in enumerate(layers):
            for head, positions in enumerate(rows):
                found[layer][block, head, positions.long()] = True
    return torch.cat(blocks), found


def masked_logits(model: PreTrainedModel, text: Text, blocks: Tensor, held: list[Tensor]) -> Tensor:
    """Logits of the last inputs, ``[scored, vocabulary]``, with gradients; see `held_by_block`.

    Raises:
        ValueError: outside of `attending_to_held`.
    """
    if model.config._attn_implementation != IMPLEMENTATION:
        raise ValueError("what was held is only seen within attending_to_held(model), the backward pass included")
    own = (blocks[:, None] == blocks).tril()  # of its block a query sees the tokens up to its own, in every layer
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": text.scored, "held": (own, blocks, held)}
    logits: Tensor = model(text.inputs[None].to(model.device), **options).logits[0]
    return logits


@contextmanager
def attending_to_held(model: PreTrainedModel) -> Iterator[None]:
    """Within it a call of the model may say what was ``held``; others are as ever."""
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    held: tuple[Tensor, Tensor, list[Tensor]] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers: a query sees its own block up to itself, and what was held before it.

    Args:
        query: ``[1, query heads, tokens, width]``. key, value: ``[1, KV heads, tokens, width]``.
        held: what queries see of their own blocks, ``[tokens, tokens]`` bool, and what `held_by_block` gives; None: the
            call is an ordinary one.

    Returns:
        ``[1, tokens, query heads, width]`` and None.

    Raises:
        UnsupportedModelError: for arguments that change attention in another way.
    """
    if held is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found
    if refused := [name for name in ("softcap", "s_aux", "sliding_window") if kwargs.get(name) is not None]:
        raise UnsupportedModelError(f"{PLAIN_ONLY} ({type(module).__name__} has {', '.join(refused)})")
    if kwargs.get("dropout"):  # as in pieces, where a MemoryCache refuses it
        raise UnsupportedModelError(ATTENTION_DROPOUT)
    own, blocks, layers = held
    group = query.shape[1] // key.shape[1]
    seen = layers[module.layer_idx][blocks].transpose(0, 1) | own  # type: ignore[index]  # [heads, queries, tokens]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    mask = seen.repeat_interleave(group, dim=0)[None]
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, masked_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
