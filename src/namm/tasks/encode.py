"""From text to tokens, the same everywhere: a text that begins a prompt begins as its tokenizer begins texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"  # any text of at least one token


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, begins: bool = True) -> Tensor:
    """Token ids of a text, ``[1, tokens]`` int64.

    Args:
        begins: put the tokenizer's own beginning (a BOS token, for many models) before it, unless the text already has
            it, as what a chat template gives does; False for what follows on something. No ending (EOS) is ever added.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = beginning(tokenizer) if begins else []
    return torch.tensor([ids if ids[: len(start)] == start else start + ids], dtype=torch.long)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    first = next(i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain)
    return list(whole[:first])
