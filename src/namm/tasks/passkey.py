"""Pass-key retrieval: a random number hidden in a long text, and asked for after the text has been read."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from namm.tasks.documents import Document
from namm.tasks.sample import Sample
from namm.tasks.text import cut_sentences, fit, token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Wording:
    """How a key is told, and how it is asked for.

    Attributes:
        needle: the hidden words, with ``{key}`` where the number goes and the blank space around them.
        question: what to continue after the context, in such a form that the number comes next.
    """

    needle: str
    question: str

    def __post_init__(self) -> None:
        if "{key}" not in self.needle:
            raise ValueError(f"the needle {self.needle!r} has no place for the number: write {{key}} where it goes")


# Completed in their own words, needles are found by small models that no other question would serve. Memories are
# trained on facts (see `namm.tasks.facts`) told like the first; nothing in training looks like the others.
WORDINGS: Mapping[str, Wording] = {
    "sentence": Wording(" The pass key is {key}.", "\n\nThe pass key is "),
    "register": Wording("\n\nLocker 7 opens with {key}.\n\n", "\n\nLocker 7 opens with "),
    "log": Wording(
        "\n\n09:42:11 WARN gate-4: badge rejected, token={key}\n\n", "\n\n09:42:11 WARN gate-4: badge rejected, token="
    ),
    "table": Wording(
        "\n\n| room | floor | extension |\n| --- | --- | --- |\n| archive | 2 | {key} |\n\n", "\n\n| archive | 2 | "
    ),
    "other words": Wording(
        " Whoever wants to call the lighthouse has to dial {key}.", "\n\nThe telephone number of the lighthouse is "
    ),
}
SENTENCE = WORDINGS["sentence"]


def pass_key(
    haystack: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    seed: int,
    depth: float | None = None,
    wording: Wording = SENTENCE,
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
        wording: of the needle and the question; `WORDINGS` has some.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; it must lie between 0 (start of the context) and 1 (its end)")
    rng = random.Random(seed)
    key = str(rng.randrange(10_000, 100_000))
    place = rng.random()
    place = place if depth is None else depth
    documents = rng.sample(list(haystack), len(haystack))

    room = tokens - token_counts(tokenizer, [wording.needle.format(key=key)])[0]
    if room < 1:
        raise ValueError(f"tokens={tokens} leaves no room for text beside the needle of {tokens - room} tokens")
    sentences, sizes = cut_sentences(documents, tokenizer, room, rng)
    while any(key in sentence for sentence in sentences):  # else the text itself would hold the answer
        key = str(rng.randrange(10_000, 100_000))

    starts = [start for start in [0, *accumulate(sizes[:-1])] if start < room]
    index = min(range(len(starts)), key=lambda i: abs(starts[i] - place * room))
    before, after = "".join(sentences[:index]), "".join(sentences[index:])
    needle = wording.needle.format(key=key)
    if needle[-1].isspace():
        after = after.lstrip()
    text = (before + needle + after).lstrip()

    # Sentences were counted one by one, which only nearly gives the size of the whole
    return Sample(fit(text, tokenizer, tokens, at_least=len(text) - len(after)), wording.question, key)
