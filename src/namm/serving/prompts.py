"""From requests to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, tensor

from namm.serving.documents import Document
from namm.serving.errors import ServingError
from namm.serving.schemas import Asked, ChatRequest, CompletionRequest
from namm.tasks.chat import before_questions, has_chat, turns_after, turns_in_chat
from namm.tasks.encode import encode

ANSWER = 256  # tokens at most, where a request does not say


@dataclass(frozen=True)
class Prompts:
    """Encodes what is asked, and knows how long it may be.

    Attributes:
        tokenizer: of the model.
        vocabulary: tokens that the model knows.
        limit: of a document, a prompt and its answer together; None: none.
        positions: that the model knows; None: any.
    """

    tokenizer: Any
    vocabulary: int
    limit: int | None
    positions: int | None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, limit: int | None) -> Prompts:
        """With the limit of the model's positions, where none is given."""
        known = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        encode(tokenizer, "a")  # a tokenizer file may ask for truncation, which ends with the first text
        return cls(tokenizer, model.get_input_embeddings().num_embeddings, limit or known, known)

    def completion(self, request: CompletionRequest, document: Document | None) -> Tensor:
        """``[1, tokens]`` of a text that is to be gone on with."""
        prompt = request.prompt
        if isinstance(prompt, str):
            return self._checked(encode(self.tokenizer, prompt, begins=document is None), "prompt")
        if wrong := [token for token in prompt if token >= self.vocabulary]:
            raise ServingError(
                400, f"there is no token {wrong[0]}: the model knows {self.vocabulary}", "no_such_token", "prompt"
            )
        return self._checked(tensor([prompt]), "prompt")

    def chat(self, request: ChatRequest, document: Document | None) -> Tensor:
        """``[1, tokens]`` of a chat in which the assistant's turn has come."""
        if not has_chat(self.tokenizer):
            raise ServingError(400, "the model has no chat template: use /v1/completions", "no_chat", "messages")
        if document is not None and not document.chat:
            raise ServingError(
                400,
                f"{document.id} was read without the chat template: use /v1/completions, or read it again without raw",
                "not_a_chat",
                "document",
            )
        turns = [message.turn for message in request.messages]
        try:
            text = turns_in_chat(self.tokenizer, turns) if document is None else turns_after(self.tokenizer, turns)
        except Exception as error:  # templates are programs, and fail in any way
            raise ServingError(400, str(error) or type(error).__name__, "bad_messages", "messages") from None
        return self._checked(encode(self.tokenizer, text, begins=document is None), "messages")

    def document(self, text: str, raw: bool, repeats: int = 0) -> tuple[Tensor, bool]:
        """``[1, tokens]`` of a text that is read before anything is asked, and whether it begins a chat.

        Args:
            repeats: tokens that come behind it at most, while it is rehearsed.
        """
        try:
            begun, chat = before_questions(self.tokenizer, text, raw=raw)
        except ValueError as error:
            raise ServingError(400, f"{error}; or read it raw", "bad_text", "text") from None
        ids = self._checked(encode(self.tokenizer, begun), "text")
        if self.limit is not None and ids.shape[1] >= self.limit:
            raise self._too_long(ids.shape[1], 0, "text")
        if repeats and self.positions is not None and ids.shape[1] + repeats > self.positions:
            raise ServingError(
                413,
                f"{ids.shape[1]} tokens and {repeats} of a repetition are more than the model's {self.positions} "
                "positions: send less text, or read it without rehearse",
                "context_length_exceeded",
                "text",
            )
        return ids, chat

    def new_tokens(self, request: Asked, ids: Tensor, document: Document | None) -> int:
        """Of the answer at most.

        Raises:
            ServingError: if that is more than there may be.
        """
        before = ids.shape[1] + (0 if document is None else document.tokens)
        if self.limit is None:
            return request.wanted or ANSWER
        wanted = request.wanted or max(1, min(ANSWER, self.limit - before))
        if before + wanted > self.limit:
            raise self._too_long(before, wanted, None)
        return wanted

    def _too_long(self, before: int, wanted: int, param: str | None) -> ServingError:
        asked = f" and {wanted} of an answer" if wanted else ""
        return ServingError(
            413,
            f"{before} tokens{asked} are more than the {self.limit} that this server takes: send less text, or ask "
            "for fewer tokens",
            "context_length_exceeded",
            param,
        )

    def _checked(self, ids: Tensor, param: str) -> Tensor:
        if not ids.shape[1]:
            raise ServingError(400, f"{param} has no tokens", "empty", param)
        return ids
