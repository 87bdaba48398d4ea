"""Pass-key retrieval: a random number hidden in a long text, and asked for after the text has been read."""

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from namm.tasks.documents import Document
from namm.tasks.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Completed in its own words, the needle is found by small models that no chat form would serve.
NEEDLE = " The pass key is {key}."
QUESTION = "\n\nThe pass key is "

# A sentence ends behind its closing quotes where blank space and the sign of a new beginning follow, or at a blank
# line. Lines of prose are often wrapped, so a single line break ends nothing there.
_END_OF_SENTENCE = re.compile(
    r"""[.!?]["'\u201d\u2019)\]]*(?=\s+["'\u201c\u2018(\[]?[A-Z0-9])|[\u3002\uff01\uff1f]|(?<=\S)(?=\s*\n\s*\n)"""
)
_END_OF_LINE = re.compile(r"(?<=\S)(?=\s*\n)")
_END_OF_WORD = re.compile(r"(?<=\S)(?=\s|$)")


def pass_key(
    haystack: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    seed: int,
    depth: float | None = None,
    needle: str = NEEDLE,
    question: str = QUESTION,
) -> Sample:
    """Hide a random five-digit number in a text cut from the haystack.

    The text begins at a random sentence of a random document and goes on into further documents where one is too
    short. The needle stands between two sentences (in code: two lines). All is determined by the arguments; for one
    seed, key and depth are the same at every length (unless the text happens to hold the number already).

    Args:
        haystack: documents to cut from; together they must have at least ``tokens`` tokens.
        tokenizer: of the model that will be asked.
        tokens: length of the context, needle included; it ends with the last whole word that fits.
        seed: of the key, the depth and the choice of text.
        depth: where the needle stands, from 0 (first) to 1 (just before the last sentence); None: anywhere.
        needle: the hidden words, with ``{key}`` where the number goes and the blank space before them.
        question: what to continue after the context, in such a form that the number comes next.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; it must lie between 0 (start of the context) and 1 (its end)")
    if "{key}" not in needle:
        raise ValueError(f"the needle {needle!r} has no place for the number: write {{key}} where it goes")
    rng = random.Random(seed)
    key = str(rng.randrange(10_000, 100_000))
    place = rng.random()
    place = place if depth is None else depth
    documents = rng.sample(list(haystack), len(haystack))

    room = tokens - _lengths(tokenizer, [needle.format(key=key)])[0]
    if room < 1:
        raise ValueError(f"tokens={tokens} leaves no room for text beside the needle of {tokens - room} tokens")
    sentences, sizes = _cut(documents, tokenizer, room, rng)
    while any(key in sentence for sentence in sentences):  # else the text itself would hold the answer
        key = str(rng.randrange(10_000, 100_000))

    starts = [start for start in [0, *accumulate(sizes[:-1])] if start < room]
    index = min(range(len(starts)), key=lambda i: abs(starts[i] - place * room))
    before, after = "".join(sentences[:index]), "".join(sentences[index:])
    text = (before + needle.format(key=key) + after).lstrip()

    # Sentences were counted one by one, which only nearly gives the size of the whole: find the word to end with.
    end_of_needle = len(text) - len(after)
    ends = [found.end() for found in _END_OF_WORD.finditer(text) if found.end() > end_of_needle]
    fitting = bisect_right(ends, tokens, key=lambda end: _lengths(tokenizer, [text[:end]])[0])
    return Sample(text[: ends[max(fitting - 1, 0)]], question, key)


def _cut(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", room: int, rng: random.Random
) -> tuple[list[str], list[int]]:
    """Consecutive sentences of at least ``room`` tokens, with some to spare where there are, and their sizes."""
    ample = room * 11 // 10 + 1  # a tokenizer may count more in the pieces than in the whole
    sentences: list[str] = []
    sizes: list[int] = []
    starts_in_first = 0
    for document in documents:
        pieces = _sentences(document)
        sentences += pieces
        sizes += _lengths(tokenizer, pieces)
        starts_in_first = starts_in_first or len(pieces)
        if sum(sizes) >= ample:
            break
    if sum(sizes) < room:
        raise ValueError(
            f"the haystack of {len(documents)} documents has {sum(sizes)} tokens and {room} are needed beside the "
            "needle; add documents or ask for fewer tokens"
        )
    ample = min(ample, sum(sizes))
    possible = bisect_right([0, *accumulate(sizes)][:starts_in_first], sum(sizes) - ample)
    first = rng.randrange(possible)
    last = first + bisect_left(list(accumulate(sizes[first:])), ample)
    return sentences[first : last + 1], sizes[first : last + 1]


def _sentences(document: Document) -> list[str]:
    """The document in pieces, each with the blank space before it, so that joining them restores the text."""
    end_of_piece = _END_OF_LINE if document.kind == "code" else _END_OF_SENTENCE
    text = "\n\n" + document.text.strip()
    ends = [found.end() for found in end_of_piece.finditer(text)] + [len(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def _lengths(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[int]:
    """Number of tokens of each text, without special tokens."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
