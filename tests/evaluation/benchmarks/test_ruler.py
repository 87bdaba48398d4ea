from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from namm.evaluation.benchmarks.base import Request, SkippedTaskError
from namm.evaluation.benchmarks.metrics import METRICS
from namm.evaluation.benchmarks.ruler import RULER
from namm.evaluation.benchmarks.ruler_forms import Form, Maker, fill
from namm.tasks import Document, packaged_prose

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
FORM = re.compile(
    r"(?P<head>A special magic uuid is hidden within the following text\. Make sure to memorize it\. I will quiz you "
    rf"about the uuid afterwards\.\n)(?P<needles>(?:One of the special magic uuids for {UUID} is: {UUID}\.\n)+)"
    rf"(?P<asks>What is the special magic uuid for (?P<key>{UUID}) mentioned in the provided text\? The special magic "
    rf"uuid for (?P=key) mentioned in the provided text is)"
)
# the form of niah_multikey_3 as RULER writes it, with three needles of our own
EXCERPT = """\
A special magic uuid is hidden within the following text. Make sure to memorize it. \
I will quiz you about the uuid afterwards.
One of the special magic uuids for 0c11b06e-58d4-4d53-9ac7-7a1f0bb1d9e2 is: 5d0ee4b1-7c1c-4b0a-8a56-0f6a3f1c2b77.
One of the special magic uuids for 9b1f5a52-2f0e-4f63-b7c8-61c0f6d9a301 is: e37c9d10-4a8b-4e2f-9d31-c5b7a0e8f642.
One of the special magic uuids for 3f7a2c84-d6b9-4c15-a0e4-8d92b61f7e53 is: 71b4e8f2-0d3c-4a69-b58e-2c9f6d10a7e4.
What is the special magic uuid for 9b1f5a52-2f0e-4f63-b7c8-61c0f6d9a301 mentioned in the provided text? \
The special magic uuid for 9b1f5a52-2f0e-4f63-b7c8-61c0f6d9a301 mentioned in the provided text is"""
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
KEY = r"[a-z]+-[a-z]+"
KEYS = rf"(?:{KEY}, ){{3}}and {KEY}"
NUMBER = r"[1-9][0-9]{6}"
# what is hidden, needles in the text (None: nothing else), question's keys, answers
NEEDLES = {
    "niah_single_1": ("number", KEY, NUMBER, 1, KEY, 1),
    "niah_single_2": ("number", KEY, NUMBER, 1, KEY, 1),
    "niah_single_3": ("uuid", KEY, UUID, 1, KEY, 1),
    "niah_multikey_1": ("number", KEY, NUMBER, 4, KEY, 1),
    "niah_multikey_2": ("number", KEY, NUMBER, None, KEY, 1),
    "niah_multikey_3": ("uuid", UUID, UUID, None, UUID, 1),
    "niah_multivalue": ("number", KEY, NUMBER, 4, KEY, 4),
    "niah_multiquery": ("number", KEY, NUMBER, 4, KEYS, 4),
}
SYNTHETIC = [name for name in RULER if "qa" not in name]


@pytest.fixture
def request_(characters) -> Request:
    return Request(characters, text=tuple(packaged_prose("heldout")), tokens=3000, samples=2, seed=3)


def form_of(prompt: str, answers) -> tuple[str, str]:
    """A prompt of niah_multikey_3 without its uuids and the number of its needles."""
    match = FORM.fullmatch(prompt)
    assert match, prompt[:300]
    assert f"for {match['key']} is: {answers[0]}." in match["needles"] and len(answers) == 1
    (needle,) = set(re.sub(UUID, "UUID", match["needles"]).splitlines())
    return match["head"] + needle, re.sub(UUID, "UUID", match["asks"])


def write(folder: Path, name: str, *rows: dict) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_prompts_fill_their_tokens_and_hold_their_answers(name, request_, characters) -> None:
    task = RULER[name]
    first, second = task.questions(request_)
    assert (first, second) == tuple(task.questions(request_)), "not determined by the seed"
    assert (first.context, first.name) != (second.context, second.name)
    assert next(iter(task.questions(replace(request_, seed=4)))) == second
    for question in (first, second):
        tokens = len(characters(question.context + question.question)["input_ids"])
        room = request_.tokens - task.new_tokens
        assert room - 400 < tokens <= room  # no unit of any haystack is longer
        assert question.answers and all(answer in question.context for answer in question.answers)
        assert METRICS[task.metric](" " + ", ".join(question.answers), question.answers, ()) == 1.0
        assert METRICS[task.metric]("nothing of it", question.answers, ()) == 0.0


def test_as_many_tokens_are_generated_as_published() -> None:
    found = {name.removeprefix("ruler/"): (task.new_tokens, task.metric) for name, task in RULER.items()}
    rest = {"vt": (30, "all_of"), "cwe": (120, "all_of"), "fwe": (50, "all_of")}
    assert found == {name: (128, "all_of") for name in NEEDLES} | rest | {f"qa_{n}": (32, "any_of") for n in (1, 2)}


def test_the_largest_prompt_that_fits_is_found(request_) -> None:
    def make(units: int, rng: random.Random) -> Form:
        return Form("x" * 7 * units, "?" * rng.randrange(3, 4), ())

    for tokens in range(50, 120):
        found = fill(Maker(make, least=2), replace(request_, tokens=tokens), 10, "seed")
        assert len(found.context) == (tokens - 10 - 3) // 7 * 7
    assert len(fill(Maker(make, least=2, most=5), request_, 10, "seed").context) == 35
    assert len(fill(Maker(make, least=2), replace(request_, tokens=27), 10, "seed").context) == 14
    with pytest.raises(
        SkippedTaskError, match="shortest prompt has 17 tokens and its answer 10, together more than --tokens 26"
    ):
        fill(Maker(make, least=2), replace(request_, tokens=26), 10, "seed")


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_hidden_and_asked_for_as_published(name, request_) -> None:
    kind, key, value, count, query, answers = NEEDLES[name]
    question = next(iter(RULER[f"ruler/{name}"].questions(request_)))
    several = answers > 1
    some, kinds, are = ("Some", f"{kind}s", "are") if several else ("A", kind, "is")
    head = (
        f"{some} special magic {kinds} {are} hidden within the following text. Make sure to memorize it. I will quiz "
        f"you about the {kinds} afterwards.\n"
    )
    assert question.context.startswith(head)
    asked = rf"the special magic {kinds} for ({query}) mentioned in the provided text"
    asks = re.fullmatch(rf"\nWhat {'are all' if several else 'is'} {asked}\? The{asked[3:]} {are}", question.question)
    assert asks and asks[1] == asks[2]

    found = re.findall(rf"One of the special magic {kind}s for ({key}) is: ({value})\.", question.context)
    assert len(found) == count if count else len(found) > 10
    queried = set(re.findall(key, asks[1].replace(", and ", ", ")))
    assert Counter(own for own_key, own in found if own_key in queried) == Counter(question.answers)
    assert len(question.answers) == answers

    rest = re.sub(rf"One of the special magic {kind}s for {key} is: {value}\.", "", question.context[len(head) :])
    if name == "niah_single_1":
        assert set(rest.split("\n")) == {NOISE, ""}
    elif count is None:
        assert set(rest) == {"\n"}
    else:
        prose = " ".join(" ".join(document.text for document in request_.text).split())
        assert "\n" not in rest and " ".join(rest.split())[:300] in prose


def test_an_essay_begins_again_where_it_is_too_short(request_) -> None:
    words = " ".join(f"word{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{chr(97 + n // 26)}" for n in range(120))
    short = Document("short", f"The first sentence stands here. {words.capitalize()}.", "prose")
    question = next(iter(RULER["ruler/niah_single_2"].questions(replace(request_, text=(short,)))))
    assert question.context.count("The first sentence stands here.") > 1


def test_the_form_is_rulers(request_) -> None:
    expected = form_of(EXCERPT, ["e37c9d10-4a8b-4e2f-9d31-c5b7a0e8f642"])
    for question in RULER["ruler/niah_multikey_3"].questions(request_):
        assert form_of(question.context + question.question, question.answers) == expected


def test_rulers_own_file_has_the_same_form_and_scores_the_same(request_) -> None:
    named = os.environ.get("NAMM_RULER")
    if not named:
        pytest.skip("NAMM_RULER names no file of RULER's niah_multikey_3")
    task = RULER["ruler/niah_multikey_3"]
    rows = [json.loads(line) for line in Path(named).read_text().splitlines()]
    real = list(task.questions(replace(request_, data=Path(named).parent, samples=None)))
    ours = next(iter(task.questions(request_)))
    assert len(real) == len(rows) > 0
    for row, question in zip(rows, real, strict=True):
        assert question.context + question.question == row["input"]
        assert question.question.startswith("\nWhat is the special magic uuid for ")
        assert list(question.answers) == row["outputs"]
        form = form_of(row["input"], row["outputs"])
        assert form == form_of(ours.context + ours.question, ours.answers)
        for asked, other in ((question, ours), (ours, question)):
            score = METRICS[task.metric]
            assert score(f" {asked.answers[0].upper()}.", asked.answers, ()) == 1.0
            assert score(other.answers[0], asked.answers, ()) == 0.0


def test_files_are_found_as_ruler_writes_them(request_, tmp_path) -> None:
    row = {"index": 5, "input": "Text.\nQuestion: Which? Answer: So and so:", "outputs": ["a", "b"], "length": 9}
    apart = {**row, "input": "Text.\nQuestion: Which?", "answer_prefix": " Answer: So and so:"}
    request = replace(request_, data=tmp_path, samples=None)
    write(tmp_path, "vt/validation.jsonl", row, apart)
    first, second = RULER["ruler/vt"].questions(request)
    assert (first.context, first.question) == ("Text.", "\nQuestion: Which? Answer: So and so:")
    assert (second.context, second.question, second.answers) == (first.context, first.question, ("a", "b"))
    assert first.name != second.name, "RULER's index is not unique"
    write(tmp_path, "vt_1024.jsonl", row)
    write(tmp_path, "vt_3000.jsonl", {**row, "outputs": ["of this length"]})
    (found,) = RULER["ruler/vt"].questions(request)
    assert found.answers == ("of this length",)
    assert len(list(RULER["ruler/vt"].questions(replace(request, tokens=1000, samples=1)))) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "Text.\nQuestion: Which?"}, "'outputs' must be a list of texts"),
        ({"input": "Text.\nQuestion: Which?", "outputs": []}, "'outputs' must be a list of texts"),
        ({"input": "Text.", "outputs": ["a"]}, "no question of RULER's"),
        ({"outputs": ["a"]}, "'input' must be a text"),
    ],
)
def test_rows_that_are_not_rulers_are_named(row, message, request_, tmp_path) -> None:
    write(tmp_path, "vt.jsonl", {"input": "Text.\nQuestion: Which?", "outputs": ["a"]}, row)
    with pytest.raises(ValueError, match=rf"vt\.jsonl:2: {message}"):
        list(RULER["ruler/vt"].questions(replace(request_, data=tmp_path, samples=None)))


def test_texts_and_lengths_that_do_not_serve_are_named(request_) -> None:
    with pytest.raises(SkippedTaskError, match="prose"):
        list(RULER["ruler/niah_single_2"].questions(replace(request_, text=())))
    with pytest.raises(SkippedTaskError, match="shortest prompt"):
        list(RULER["ruler/vt"].questions(replace(request_, tokens=100)))


def test_tasks_without_their_documents_say_how_to_get_them(request_, tmp_path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(
            SkippedTaskError, match=r"^write qa_1\.jsonl .* SQuAD's dev-v2\.0\.json as squad\.json[^\n]*$"
        ):
            list(RULER["ruler/qa_1"].questions(replace(request_, data=data)))
