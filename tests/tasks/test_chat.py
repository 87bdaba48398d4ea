"""A prompt in a chat is what the template makes of it, cut where the context ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizing import bytewise

from namm.tasks.chat import chat_parts, in_chat

TEMPLATE = "<s>{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}</>{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def tokenizer():
    made = bytewise()
    made.chat_template = TEMPLATE
    return made


@given(st.text("ab <>\n").filter(str.strip), st.text("ab <>\n"), st.text("ab "))
def test_the_parts_are_the_chat(tokenizer, context: str, question: str, reply: str) -> None:
    before, after = chat_parts(tokenizer, context, question, reply)
    assert before + after == in_chat(tokenizer, context + question) + reply
    assert before == "<s><user>" + (context.lstrip() if question.strip() else context.strip())


def test_a_question_that_repeats_the_context_is_no_part_of_it(tokenizer) -> None:
    assert chat_parts(tokenizer, "user", " user") == ("<s><user>user", " user</><assistant>")


def test_no_template_and_one_that_alters_are_refused() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        chat_parts(bytewise(), "a", "b")
    shouting = bytewise()
    shouting.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(ValueError, match="alters what the user says"):
        chat_parts(shouting, "a", "b")
    with pytest.raises(ValueError, match="the context is empty"):
        chat_parts(shouting, " ", "b")
