from __future__ import annotations

from dataclasses import replace

import pytest

from namm.evaluation.benchmarks.base import Request, SkippedTaskError
from namm.evaluation.benchmarks.metrics import METRICS
from namm.evaluation.benchmarks.needle import DEPTHS, NEEDLE
from namm.tasks import Document, packaged_prose
from namm.tasks.text import sentences_of


@pytest.fixture
def request_(characters) -> Request:
    return Request(characters, text=tuple(packaged_prose("heldout")), tokens=8000, samples=2, seed=3)


def test_every_cell_of_the_grid_has_its_samples(request_) -> None:
    found = list(NEEDLE["needle"].questions(request_))
    places = [(question.place["length"], question.place["depth"]) for question in found]
    assert places == [(n, depth) for n in (2000.0, 4000.0, 8000.0) for depth in DEPTHS for _ in range(2)]
    assert len({question.name for question in found}) == len(found)
    assert found == list(NEEDLE["needle"].questions(request_))
    assert len(list(NEEDLE["needle"].questions(replace(request_, samples=None)))) == 3 * 5 * 3


def test_needles_stand_at_their_depth_in_texts_of_their_length(request_, characters) -> None:
    longest = max(len(sentence.encode()) for text in request_.text for sentence in sentences_of(text))
    for question in NEEDLE["needle"].questions(request_):
        length = question.place["length"]
        context = question.context.encode()
        assert 0.9 * length < len(characters(question.context)["input_ids"]) <= length
        assert question.context.count(question.answers[0]) == 1
        at = context.index(f"The pass key is {question.answers[0]}.".encode())
        # needles stand between sentences: none is further from its depth than the longest of them
        assert abs(at - question.place["depth"] * length) <= longest


def test_answers_score_by_their_beginning(request_) -> None:
    task = NEEDLE["needle"]
    question = next(iter(task.questions(request_)))
    assert task.new_tokens == 8
    assert METRICS[task.metric](f"{question.answers[0]}. And", question.answers, ()) == 1.0
    assert METRICS[task.metric]("12", question.answers, ()) == 0.0
    assert METRICS[task.metric](f"{question.answers[0]}0.", question.answers, ()) == 0.0


def test_a_text_that_is_no_prose_is_named(request_) -> None:
    with pytest.raises(SkippedTaskError, match="prose"):
        list(NEEDLE["needle"].questions(replace(request_, text=(Document("a.py", "x = 1\n" * 999, "code"),))))
