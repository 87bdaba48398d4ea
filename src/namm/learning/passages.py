"""Pieces of documents to learn from, with facts hidden in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from namm.tasks.documents import Document
from namm.tasks.encode import encode
from namm.tasks.facts import Fact, hide_facts

CHARACTERS_PER_TOKEN = 8  # more than any text needs, to cut before tokenising


@dataclass(frozen=True)
class Passage:
    """A piece of a document, ``ids`` ``[1, tokens]``, and the facts that were hidden in it.

    It begins as the tokenizer begins a text, with a BOS token for many models.
    """

    name: str
    ids: Tensor
    facts: list[Fact] = field(default_factory=list)


def cut_passages(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    count: int,
    facts: int,
    rng: random.Random,
) -> list[Passage]:
    """Passages from the documents in a random order, with facts hidden in them.

    Args:
        lengths: of the passages in tokens, taken in turn.
        count: how many passages to cut, at most.
        facts: one for about so many tokens; 0: none.

    Raises:
        ValueError: if no document is long enough for the shortest length.
    """
    order = list(documents)
    rng.shuffle(order)
    passages: list[Passage] = []
    for document, begin in _places(order, rng, max(count * 4, len(order))):
        if len(passages) == count:
            break
        length = lengths[len(passages) % len(lengths)]
        text = document.text[begin : begin + length * CHARACTERS_PER_TOKEN]
        hidden, known = hide_facts(text, max(1, length // facts), rng) if facts else (text, [])
        plain, ids = (encode(tokenizer, t)[:, :length] for t in (text, hidden))
        if plain.shape[1] == ids.shape[1] == length:
            whole = tokenizer.decode(ids[0])
            passages.append(Passage(document.name, ids, [fact for fact in known if fact.statement in whole]))
    if len(passages) < min(2, count):
        raise ValueError(
            f"only {len(passages)} of {len(order)} documents give a passage of {min(lengths)} tokens: give more or "
            "longer texts, or shorter lengths"
        )
    return passages


def cut_evenly(
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[Document]],
    *,
    lengths: Sequence[int],
    count: int,
    facts: int,
    seed: int,
) -> list[list[Passage]]:
    """Passages from every source, about as many from each; the same for a seed.

    Args:
        count: of all passages, or a few more. lengths, facts: see `cut_passages`.

    Raises:
        ValueError: without sources, or if one has no document that is long enough.
    """
    if not sources:
        raise ValueError("there are no documents to learn from: give at least one source")
    return [
        cut_passages(
            tokenizer,
            source,
            lengths=lengths,
            count=-(-count // len(sources)),
            facts=facts,
            rng=random.Random(f"{seed} passages {number}"),
        )
        for number, source in enumerate(sources)
    ]


def whole_intervals(lengths: Sequence[int], interval: int, least: int = 1) -> list[int]:
    """Lengths cut to whole update intervals, at least so many of them.

    >>> whole_intervals([100, 500], 256)
    [256, 256]
    """
    return [max(least, length // interval) * interval for length in lengths]


def deal(sources: Sequence[Sequence[Passage]], count: int, rounds: int) -> list[list[Passage]]:
    """For each round the passages that it reads: from the sources in turn, so that every round reads every source.

    Args:
        count: of all passages, at most. rounds: each gets a passage at least.

    Raises:
        ValueError: if there are fewer passages than rounds.
    """
    mixed = [
        (source[number], number + place)
        for number in range(max(map(len, sources)))
        for place, source in enumerate(sources)
        if number < len(source)
    ][:count]
    if len(mixed) < rounds:
        raise ValueError(f"{len(mixed)} passages are not enough for {rounds} rounds")
    if len({turn % rounds for _, turn in mixed}) < rounds:  # few passages
        mixed = [(passage, index) for index, (passage, _) in enumerate(mixed)]
    return [[passage for passage, turn in mixed if turn % rounds == own] for own in range(rounds)]


def _places(order: Sequence[Document], rng: random.Random, limit: int) -> Iterator[tuple[Document, int]]:
    """Documents one after the other with the character to begin at: their beginning first, then random places."""
    for turn in range(limit if order else 0):
        document = order[turn % len(order)]
        yield document, 0 if turn < len(order) else rng.randrange(max(1, len(document.text) // 2))
