from __future__ import annotations

import json
import re

import pytest

from namm.tasks.documents import read_documents
from namm.tasks.longbench import LongBenchRow, longbench_rows
from namm.tasks.rows import json_lines, text_of, texts_of

ROW = {"context": "A text.", "input": "Who?", "answers": ["Ann"]}


@pytest.mark.fault("C18", siblings="answers that are a number, labels that are no list, a question that is no text")
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context": 3}, "'context' must be a text, found int"),
        ({"context": " \n"}, "the text under 'context' is blank"),
        ({"input": {"a": 1}}, "'input' must be a text, found dict"),
        ({"answers": None}, "'answers' must be a list of texts, at least 1 of them not blank, found [None]"),
        ({"answers": {"text": "Ann"}}, "'answers' must be a list of texts"),
        ({"answers": [["Ann"]]}, "'answers' must be a list of texts"),
        ({"answers": ["", " "]}, "'answers' must be a list of texts, at least 1 of them not blank"),
        ({"answers": [], "outputs": [None]}, "'outputs' must be a list of texts"),
        ({"all_classes": 7}, "'all_classes' must be a list of texts, found 7"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_file_line_and_key(tmp_path, changes, message) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | changes))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:3: {message}')}"):
        list(longbench_rows(str(file)))


@pytest.mark.parametrize(
    "line, message",
    [
        ("[1]", "not a JSON object"),
        ('{"a": ', "not a line of JSON"),
        ('{"a": ' + "[" * 100_000, "not a line of JSON"),
        ('{"a": ' + "9" * 5_000 + "}", "not a line of JSON"),
        ('{"a": "\\ud800"}', "not a line of JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, message) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("{}\n" + line)
    rows = json_lines(file)
    assert next(rows) == (f"{file}:1", {})
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:2: {message}')}"):
        next(rows)


@pytest.mark.fault("A10", siblings="documents, in folders and named alone")
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW), encoding="utf-8-sig")
    (tmp_path / "text.txt").write_text("A text.", encoding="utf-8-sig")
    assert list(longbench_rows(str(tmp_path / "rows.jsonl"))) == [LongBenchRow("A text.", "Who?", ("Ann",))]
    assert [document.text for document in read_documents(tmp_path)] == ["A text.", "A text."]


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(path))}: no such file$"):
            next(json_lines(path))


def test_one_answer_may_stand_alone(tmp_path) -> None:
    file = tmp_path / "mine.jsonl"
    forms = ({"answers": "Ann"}, {"answers": None, "answer": "Ann"}, {"answers": [], "outputs": ["Ann", ""]})
    file.write_text("\n".join(json.dumps(ROW | form) for form in forms))
    assert [row.answers for row in longbench_rows(str(file))] == [("Ann",)] * 3


def test_texts_are_those_that_are_not_blank() -> None:
    assert texts_of("here", {"a": ["x", "", 3, " "]}, "a") == ("x", "3")
    assert texts_of("here", {}, "a", least=0) == ()
    with pytest.raises(ValueError, match=r"^here: 'a' must be a list of texts, at least 2 of them not blank"):
        texts_of("here", {"a": ["x", ""]}, "a", least=2)
    with pytest.raises(ValueError, match=r"^here: 'a' must be a text, found NoneType"):
        text_of("here", {}, "a")
