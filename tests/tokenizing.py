"""Tokenizers of every kind, built on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<sop>")


def bytewise(template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes with a few merges, as GPT-2 and Llama 3 have them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ċ", "Ċ"), ("4", "7")]
    words = [*letters, *(left + right for left, right in merges)]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return finished(raw, template)


def sentencepiece(scheme: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Llama 2's and Mistral's kind: a blank is put before a text."""
    letters = ["▁", "\n", *"abcdefghijklmnopqrstuvwxyzTW0123456789.?"]
    pieces = [(word, -1.0) for word in ("▁cat", "cat", "▁the", "▁T", "at")] + [(letter, -5.0) for letter in letters]
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return finished(raw, template)


def wordpiece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "the", "cat", "a", "b", "1", ".", "##t", "##a"]
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return finished(raw, "<s> $A </s>")


def finished(raw: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if template:
        ids = [(token, raw.token_to_id(token)) for token in SPECIAL]
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def by_setting() -> Any:
    words = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyzTW0123456789.?\n", "ca", "cat", "▁cat"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat")]
    return LlamaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=merges, add_bos_token=True)
