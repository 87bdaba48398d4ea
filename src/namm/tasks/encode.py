"""From text to tokens, the same everywhere: a text that begins a prompt begins as its tokenizer begins texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_ORDER_MARK = "\ufeff"  # some editors put it before a text; it is no part of it
REPEAT = "\n\nRepeat the text above:\n\n"
_PROBES = ("a", "1", ".", "\u3042")  # texts of at least one token
_ANCHORS = ("\n", ".", "a", "1")  # what a text may be said to follow


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, begins: bool = True) -> Tensor:
    """Token ids of a text, ``[1, tokens]`` int64; of an empty one at most the beginning.

    Args:
        begins: put the tokenizer's own beginning (a BOS token, for many models) before it, unless the text already has
            it, as what a chat template gives does; False for what follows on something, which gets no blank before it
            either, where a tokenizer (SentencePiece) would put one. No ending (EOS) is ever added.
    """
    if begins:
        ids = with_beginning(tokenizer, _plain(tokenizer, text.removeprefix(BYTE_ORDER_MARK)))
    else:
        ids = _following(tokenizer, text)
    return torch.tensor([ids], dtype=torch.long)


def to_repeat(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids ``[tokens]`` of what comes before the repetition in a rehearsal, see `MemoryCache.rehearse`."""
    return encode(tokenizer, REPEAT, begins=False)[0]


def with_beginning(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """A text's own tokens behind the tokenizer's beginning, which is not put before them twice."""
    start = beginning(tokenizer)
    return ids if ids[:1] == start[:1] and ids else start + ids


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text, whether by a template or by ``add_bos_token``."""
    for probe in _PROBES:
        plain, whole = _plain(tokenizer, probe), list(tokenizer(probe)["input_ids"])
        for first in range(len(whole) - len(plain) + 1):
            if plain and whole[first : first + len(plain)] == plain:
                return whole[:first]
    raise ValueError(
        f"{type(tokenizer).__name__} gives no tokens for a letter or a digit: is it the model's tokenizer?"
    )


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _following(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As `_plain`, without what the tokenizer puts between two texts that it is given one by one."""
    ids = _plain(tokenizer, text)
    if not ids or tokenizer.decode(_plain(tokenizer, "b") + _plain(tokenizer, "a")) == "ba":
        return ids
    for anchor in _ANCHORS:
        before, whole = _plain(tokenizer, anchor), _plain(tokenizer, anchor + text)
        if before and whole[: len(before)] == before:  # else the two run into one token
            return whole[len(before) :]
    return ids
