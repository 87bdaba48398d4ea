from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from namm.tasks.facts import hide_facts, random_fact


@given(text=st.text(alphabet="ab .!?\n", max_size=200), count=st.integers(0, 5), seed=st.integers(0, 99))
def test_hiding_facts_only_adds(text, count, seed):
    rng = random.Random(seed)
    hidden, facts = hide_facts(text, count, rng)
    assert len(facts) == count and all(fact.statement in hidden for fact in facts)
    assert len(hidden) >= len(text) + 10 * count
    rest = iter(hidden)
    assert all(character in rest for character in text), "the text is no subsequence any more"
    assert (hidden, facts) == hide_facts(text, count, random.Random(seed))


def test_facts_stand_between_sentences() -> None:
    hidden, _ = hide_facts("One two three. Four five six. " * 5, 1, random.Random(3))
    fact = hidden
    for piece in ("One two three. ", "Four five six. "):
        fact = fact.replace(piece, "")
    assert fact.strip() == random_fact_after_choosing_a_place(10, seed=3)


def random_fact_after_choosing_a_place(places: int, seed: int) -> str:
    rng = random.Random(seed)
    rng.choice(range(places))
    return random_fact(rng).statement


def test_facts_differ() -> None:
    rng = random.Random(0)
    assert len({random_fact(rng) for _ in range(200)}) > 190


def test_the_question_and_its_answer_begin_the_statement() -> None:
    rng = random.Random(0)
    for _ in range(100):
        fact = random_fact(rng)
        assert fact.question.strip() and fact.statement.startswith(fact.question + fact.answer)
