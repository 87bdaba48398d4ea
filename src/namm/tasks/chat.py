"""Prompts in the form of a chat, by the template that a model's tokenizer brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    return turns_in_chat(tokenizer, [{"role": "user", "content": message}]) if has_chat(tokenizer) else message


def turns_in_chat(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat after some turns, in which the assistant's has come.

    Args:
        turns: "role" and "content" of each.

    Raises:
        ValueError: if the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True))
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


def ask(question: str) -> str:
    """A question as it follows a text in a chat."""
    return f"Question: {question}"


def before_questions(tokenizer: Any, text: str, *, raw: bool = False) -> tuple[str, bool]:
    """A text as it is read before anything is asked, and whether it begins a user's turn of a chat."""
    chat = not raw and has_chat(tokenizer)
    return (chat_parts(tokenizer, text, _asked("x", chat))[0], True) if chat else (text, False)


def question_after(tokenizer: Any, question: str, chat: bool) -> str:
    """What follows on `before_questions`: the question, and in a chat the beginning of the answer's turn."""
    return chat_parts(tokenizer, "x", _asked(question, chat))[1] if chat else _asked(question, chat)


def turns_after(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    """What follows on `before_questions` in a chat whose first turn, a user's, asks about the text.

    Raises:
        ValueError: if the first turn is not a user's, or the template refuses or alters them.
    """
    if not turns or turns[0]["role"] != "user":
        raise ValueError("what is asked about a document begins with a user's turn, which the document is a part of")
    first = _MARK + _asked(turns[0]["content"].rstrip(), True)
    whole = turns_in_chat(tokenizer, [{"role": "user", "content": first}, *turns[1:]])
    if whole.count(_MARK) != 1 or not whole.partition(_MARK)[2].startswith(first[1:]):
        raise ValueError("the model's chat template alters what the user says; use completions")
    return whole.partition(_MARK)[2]


def _asked(question: str, chat: bool) -> str:
    return "\n\n" + (ask(question) if chat else question)
