"""Recall tasks made from text that a user names: keys, facts, a table of values, a passage, a topic of a dialogue.

Each asks one of several things that can be asked about its context: ``question`` 0, 1, 2 and so on are these in an
order of chance, and after the last comes the first.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from namm.tasks.documents import Document
from namm.tasks.facts import NAMES, THINGS, hide_facts
from namm.tasks.sample import Sample
from namm.tasks.text import passages, token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FACTS = 3  # in one text
_WORDS = 12  # a passage is asked for by so many of its words


def multi_key(
    haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int, question: int = 0
) -> Sample:
    """Four named numbers hidden between passages of text, one of them asked for (RULER's multi-key needle)."""
    rng = random.Random(f"multi key {seed}")
    names, keys = rng.sample(NAMES, 4), [str(rng.randrange(10_000, 100_000)) for _ in range(4)]
    needles = [f"The pass key of {name} is {key}." for name, key in zip(names, keys, strict=True)]
    room = tokens * 9 // 10 - sum(token_counts(tokenizer, needles))
    pieces = passages(haystack, tokenizer, room, rng)
    for needle in needles:
        pieces.insert(rng.randrange(len(pieces) + 1), needle)
    asked = _asked(rng, 4, question)
    return Sample("\n\n".join(pieces), f"\n\nThe pass key of {names[asked]} is ", keys[asked])


def key_value(
    haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int, question: int = 0
) -> Sample:
    """A table of random identifiers, one of whose values is asked for; `haystack` is not used."""
    rng = random.Random(f"key value {seed}")

    def line() -> tuple[str, str]:
        return uuid.UUID(int=rng.getrandbits(128)).hex[:6], str(rng.randrange(10_000, 100_000))

    pairs = [line()]
    size = sum(token_counts(tokenizer, [f"{pairs[0][0]}: {pairs[0][1]}\n"]))
    pairs += [line() for _ in range(max(1, tokens * 9 // 10 // size - 1))]
    key, value = pairs[_asked(rng, len(pairs), question)]
    return Sample("".join(f"{k}: {v}\n" for k, v in pairs), f"\n{key}: ", value)


def hidden_fact(
    haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int, question: int = 0
) -> Sample:
    """A few facts told in many ways between the sentences of a text, one of them asked for (see `namm.tasks.facts`)."""
    rng = random.Random(f"hidden fact {seed}")
    pieces = passages(haystack, tokenizer, tokens * 17 // 20, rng)
    text, facts = hide_facts(" ".join(pieces), _FACTS, rng)
    asked = facts[_asked(rng, len(facts), question)]
    return Sample(text, f"\n\n{asked.question.lstrip()}", asked.answer)


def passage_retrieval(
    haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int, question: int = 0
) -> Sample:
    """Numbered passages, of one of which some words are given: which number was it?"""
    rng = random.Random(f"passage retrieval {seed}")
    pieces = passages(haystack, tokenizer, tokens - tokens // 10, rng)
    if len(pieces) > 9:  # one digit names a passage: join neighbours
        step = -(-len(pieces) // 9)
        pieces = [" ".join(pieces[i : i + step]) for i in range(0, len(pieces), step)]
    context = "\n\n".join(f"Passage {number}: {piece}" for number, piece in enumerate(pieces, 1))
    asked = _asked(rng, len(pieces), question)
    words = pieces[asked].split()
    first = rng.randrange(max(1, len(words) - _WORDS))
    excerpt = " ".join(words[first : first + _WORDS])
    return Sample(context, f'\n\nThe words "{excerpt}" are from Passage ', str(asked + 1))


def dialogue_topic(
    haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int, question: int = 0
) -> Sample:
    """A dialogue of several topics, told in words of the haystack; the first topic is asked for (as in LongChat)."""
    rng = random.Random(f"dialogue {seed}")
    pieces = passages(haystack, tokenizer, tokens - tokens // 6, rng)
    count = max(2, min(6, len(pieces)))
    step = -(-len(pieces) // count)
    topics = rng.sample(THINGS, -(-len(pieces) // step))
    turns = [
        f"USER: Let us talk about the {topic}.\nASSISTANT: {' '.join(pieces[i * step : (i + 1) * step])}"
        for i, topic in enumerate(topics)
    ]
    asked = _asked(rng, len(topics), question)
    ordinal = ("first", "second", "third", "fourth", "fifth", "sixth")[asked]
    words = f"\nUSER: What was the {ordinal} topic?\nASSISTANT: The {ordinal} topic we talked about was the"
    return Sample("\n".join(turns), words, f" {topics[asked]}")


def _asked(rng: random.Random, count: int, question: int) -> int:
    """Which of so many things is asked, in an order of chance: in that of the context one would tell the next."""
    first = rng.randrange(count)
    if question % count == 0:
        return first
    return rng.sample([number for number in range(count) if number != first], count - 1)[question % count - 1]
