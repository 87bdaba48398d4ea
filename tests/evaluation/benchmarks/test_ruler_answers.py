from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from namm.evaluation.benchmarks.base import Question, Request
from namm.evaluation.benchmarks.ruler import RULER

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)


def paragraph(text: str, *asked: dict) -> dict:
    return {"context": text, "qas": list(asked)}


def asks(question: str, *answers: str, impossible: bool = False) -> dict:
    return {"question": question, "answers": [{"text": text} for text in answers], "is_impossible": impossible}


@pytest.fixture
def squad(tmp_path) -> Path:
    """Three articles of ten paragraphs; two questions about the first, one of which has no answer."""
    rivers = [paragraph(f"River {n} is long. " + "It flows. " * 9) for n in range(10)]
    rivers[0]["qas"] = [asks("Why not?", impossible=True), asks("Which river?", "River 0", "River 0", "the river")]
    hills = [paragraph(f"Hill {n} is high. " + "It stands. " * 9) for n in range(10)]
    hills[9]["qas"] = [asks("Which hill?", "Hill 9")]
    lakes = [paragraph(f"Lake {n} is deep. " + "It lies. " * 9) for n in range(10)]
    articles = [{"title": "a", "paragraphs": paragraphs} for paragraphs in (rivers, hills, lakes)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    return tmp_path


@pytest.fixture
def request_(characters, squad) -> Request:
    return Request(characters, data=squad, tokens=2500, samples=None, seed=3)


def documents(question: Question) -> list[str]:
    """First two words of the documents, which must be numbered as published."""
    head = f"{INSTRUCTION}\n\nThe following are given documents.\n\n"
    assert question.context.startswith(head)
    found = re.split(r"(?:^|\n\n)Document (\d+):\n", question.context[len(head) :])[1:]
    assert [int(number) for number in found[::2]] == list(range(1, len(found) // 2 + 1))
    return [" ".join(text.split()[:2]) for text in found[1::2]]


def test_squads_questions_stand_behind_documents_of_their_article_and_others(request_, characters) -> None:
    river, hill = RULER["ruler/qa_1"].questions(request_)
    assert [river, hill] == list(RULER["ruler/qa_1"].questions(request_))
    assert river.answers == ("River 0", "the river") and hill.answers == ("Hill 9",)
    assert river.question == f"\n\n{INSTRUCTION}\n\nQuestion: Which river? Answer:"
    found = documents(river)
    assert len(set(found)) == len(found)
    assert {f"River {n}" for n in range(10)} < set(found), "the rest of the article comes first"
    assert {f"Hill {n}" for n in range(10)} < set(documents(hill))
    for question in (river, hill):
        tokens = len(characters(question.context + question.question)["input_ids"])
        assert 2500 - 32 - 150 < tokens <= 2500 - 32  # a document has less than 150


def test_the_document_with_the_answer_stays_where_few_fit(request_) -> None:
    places = set()
    for seed in range(8):
        question = next(iter(RULER["ruler/qa_1"].questions(replace(request_, tokens=900, seed=seed))))
        found = documents(question)
        assert 1 < len(found) < 10 and all(name.startswith("River") for name in found)
        places.add(found.index("River 0"))
    assert len(places) > 1, "it always stands in the same place"


def test_all_documents_are_there_where_all_fit(request_) -> None:
    question = next(iter(RULER["ruler/qa_1"].questions(replace(request_, tokens=20_000))))
    assert len(set(documents(question))) == 30


def test_hotpotqas_questions_are_about_several_documents(request_, squad) -> None:
    def row(n: int) -> dict:
        context = [[f"Title {n}{letter}", ["One.", " Two."]] for letter in "abc"]
        return {"question": f"Which {n}?", "answer": f"{n}", "context": context}

    (squad / "hotpotqa.json").write_text(json.dumps([row(n) for n in range(40)]))
    found = list(RULER["ruler/qa_2"].questions(replace(request_, tokens=1000, samples=3)))
    assert [question.answers for question in found] == [("0",), ("1",), ("2",)]
    for n, question in enumerate(found):
        titles = documents(question)
        assert {f"Title {n}{letter}" for letter in "abc"} < set(titles) and len(set(titles)) == len(titles)
        assert f"Title {n}a\nOne. Two." in question.context


def test_a_file_of_rulers_own_is_split_where_its_instruction_comes_again(request_, squad) -> None:
    prompt = (
        f"{INSTRUCTION}\n\nThe following are given documents.\n\nDocument 1:\nQuestion: none.\nQuestion: Ann?\n\n"
        f"{INSTRUCTION}\n\nQuestion: Who? Answer:"
    )
    (squad / "qa_1.jsonl").write_text(json.dumps({"index": 7, "input": prompt, "outputs": ["Ann"]}) + "\n")
    (question,) = RULER["ruler/qa_1"].questions(request_)
    assert question.context + question.question == prompt
    assert question.question == f"\n\n{INSTRUCTION}\n\nQuestion: Who? Answer:"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"paragraphs": []}', "not in the format of SQuAD's dev-v2.0.json"),
        ("[]", "not in the format of SQuAD's dev-v2.0.json"),
        ('{"data": []}', "no question"),
    ],
)
def test_files_in_another_format_are_named(content, message, request_, squad) -> None:
    (squad / "squad.json").write_text(content)
    with pytest.raises(ValueError, match=rf"squad\.json: .*{message}"):
        list(RULER["ruler/qa_1"].questions(request_))
