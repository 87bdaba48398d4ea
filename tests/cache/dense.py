"""Plain attention under the mask that a policy's decisions make, for models of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from namm.cache.arithmetic import bounded, softmax_beside
from namm.policies import Head, Policy

NAME = "dense_with_decisions"


class Decisions:
    """What a policy decided: of each layer, row and head when, and which tokens were left.

    Attributes:
        fed: real tokens of each row that were given so far, set before every call.
    """

    def __init__(self, policy: Policy) -> None:
        self.found: list[tuple[Head, int, Tensor]] = []
        self.fed: list[int] = []
        select = policy.select

        def noted(heads: Sequence[Head]) -> list[Tensor]:
            answers = select(heads)
            for head, keep in zip(heads, answers, strict=True):
                left = head.positions[keep | (head.positions == head.positions[-1])]
                self.found.append((head, self.fed[head.row] if head.whole else head.seen, left.long()))
            return answers

        policy.select = noted  # type: ignore[method-assign]

    def visible(self, layer: int, row: int, head: int, tokens: int) -> Tensor:
        """``[tokens, tokens]`` bool: what each query sees."""
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        for decided, at, left in self.found:
            if (decided.layer, decided.row, decided.index) == (layer, row, head):
                end = min(decided.seen, tokens)  # tokens that came since are not decided on
                stays = torch.zeros(tokens, dtype=torch.bool)
                stays[left[left < tokens]] = True
                seen[at:, :end] &= stays[:end]
        return seen


@contextmanager
def attending(model: PreTrainedModel, decisions: Decisions, real: Tensor) -> Iterator[None]:
    """Within it the model's full attention sees what was decided on of ``real`` tokens ``[rows, tokens]``."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    types, _ = get_layer_types_and_kwargs(model.config)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        rows, heads, queries, width = query.shape
        kv, tokens, layer = key.shape[1], key.shape[2], module.layer_idx
        key, value = (tensor.repeat_interleave(heads // kv, dim=1) for tensor in (key, value))
        logits = bounded(query @ key.mT * (kwargs.get("scaling") or width**-0.5), kwargs.get("softcap"))
        seen = torch.ones(rows, heads, tokens, tokens, dtype=torch.bool).tril()
        if types[layer] == "full_attention":
            for row in range(rows):
                where = real[row, :tokens].nonzero().squeeze(-1)
                for head in range(heads):
                    own = decisions.visible(layer, row, head // (heads // kv), len(where))
                    seen[row, head, where[:, None], where] &= own
        seen = seen[:, :, tokens - queries :]
        if attention_mask is not None:
            seen = seen & attention_mask
        seen |= torch.eye(tokens, dtype=torch.bool)[tokens - queries :]  # padding would see nothing
        sinks = kwargs.get("s_aux")
        found = softmax_beside(logits.masked_fill(~seen, -math.inf), None if sinks is None else sinks[:, None])
        return (found @ value).transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
