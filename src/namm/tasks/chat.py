"""Prompts in the form of a chat, by the template that a model's tokenizer brings."""

from __future__ import annotations

from typing import Any

_MARK = "\ue000"  # in no text: tells where in a chat the user's words begin


def has_chat(tokenizer: Any) -> bool:
    """Whether the model was trained to chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def in_chat(tokenizer: Any, message: str) -> str:
    """The text of a chat in which the assistant's turn has come; the message itself where there is no template.

    Raises:
        ValueError: if the template refuses the message.
    """
    if not has_chat(tokenizer):
        return message
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": message}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(f"the model's chat template fails ({error}); go without it (--raw)") from error


def chat_parts(tokenizer: Any, context: str, question: str, reply: str = "") -> tuple[str, str]:
    """A context and a question as one turn of the user's, cut where the context ends: what is read first, and the rest.

    Args:
        reply: words that begin the assistant's turn.

    Raises:
        ValueError: if the context is empty, the tokenizer has no template, or the template refuses the message or
            alters it.
    """
    if not has_chat(tokenizer):
        raise ValueError("the model's tokenizer has no chat template; go without it")
    if not context.strip():
        raise ValueError("the context is empty")
    context = context.lstrip()
    message = (context + question).rstrip()  # most templates strip a message
    start, whole = in_chat(tokenizer, _MARK).find(_MARK), in_chat(tokenizer, message)
    if start < 0 or not whole.startswith(message, start):
        raise ValueError("the model's chat template alters what the user says; go without it")
    end = start + min(len(context), len(message))
    return whole[:end], whole[end:] + reply
