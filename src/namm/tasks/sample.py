"""One question about one context, as every task of the library hands it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from namm.tasks.encode import encode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """A context to be read first, the question that comes after it, and the answer expected.

    The model's prompt is ``context + question`` and a right answer continues it with ``answer``. They are kept apart
    because a memory must decide what to keep of the context before it can know what it will be asked.
    """

    context: str
    question: str
    answer: str

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise ValueError("a sample needs an answer that is not blank")

    @property
    def prompt(self) -> str:
        """The text a model continues: the context followed by the question."""
        return self.context + self.question

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor, Tensor]:
        """Context, which begins as the tokenizer begins texts, question and answer, ``[1, tokens]`` each."""
        return encode(tokenizer, self.context), *self.asked_ids(tokenizer)

    def asked_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
        """Question and answer, ``[1, tokens]`` each."""
        return encode(tokenizer, self.question, begins=False), encode(tokenizer, self.answer, begins=False)
