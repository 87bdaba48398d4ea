"""All generators of tasks by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from namm.tasks.continuation import continuation, repeated_code
from namm.tasks.documents import Document
from namm.tasks.passkey import pass_key
from namm.tasks.recall import dialogue_topic, hidden_fact, key_value, multi_key, passage_retrieval
from namm.tasks.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Generator(Protocol):
    """Makes one sample of about so many tokens of context, determined by its arguments."""

    def __call__(
        self, haystack: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int
    ) -> Sample: ...


GENERATORS: Mapping[str, Generator] = {
    "continuation": continuation,
    "dialogue_topic": dialogue_topic,
    "hidden_fact": hidden_fact,
    "key_value": key_value,
    "multi_key": multi_key,
    "pass_key": pass_key,
    "passage_retrieval": passage_retrieval,
    "repeated_code": repeated_code,
}


def check_task(name: str) -> None:
    """Raises ValueError unless `name` is a generator, or ``longbench:`` and a file or dataset."""
    if not isinstance(name, str):
        raise ValueError(f"a task is named by a text such as 'pass_key', not {name!r}")
    if name in GENERATORS or (name.startswith("longbench:") and name != "longbench:"):
        return
    near = difflib.get_close_matches(name, GENERATORS, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown task {name!r}: {hint}there are {', '.join(GENERATORS)} and longbench:FILE.jsonl")
