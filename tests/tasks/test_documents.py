"""Reading documents and dealing them out to splits."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namm.tasks import (
    Document,
    packaged_prose,
    read_documents,
    split_documents,
    standard_library_documents,
)
from namm.tasks.documents import cut_documents

TEXTS = st.lists(st.text(max_size=30), max_size=30)


def prose(text: str, name: str = "a") -> Document:
    return Document(name, text, "prose")


def test_folder_is_read_in_order_with_kinds(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.md", "a.txt", "deep/c.rs", "deep/d.PY", ".git/hidden.txt", "picture.bin"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "blank.txt").write_text(" \n")
    found = read_documents(tmp_path)
    assert [(document.name, document.kind) for document in found] == [
        ("a.txt", "prose"),
        ("b.md", "prose"),
        ("deep/c.rs", "code"),
        ("deep/d.PY", "code"),
    ]
    assert found[2].text == "text of deep/c.rs"


def test_byte_order_mark_and_line_breaks_are_made_plain(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    assert read_documents(str(file)) == [Document("a.txt", "one\ntwo\nthree", "prose")]


@pytest.mark.parametrize(
    "record",
    [
        {"input": "", "context": "the text", "answers": ["x"], "length": 2},  # LongBench
        {"input": "What?", "context": "the text", "answers": ["x"]},  # LongBench with a question
        {"input": "the text", "instructions": ["Sum up."], "outputs": ["x"]},  # L-Eval
        {"index": 0, "input": "the text", "outputs": ["x"], "length": 2},  # RULER
    ],
)
def test_benchmark_lines_give_one_document_each(tmp_path: Path, record: dict[str, object]) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps(record) + "\n\n" + json.dumps(record) + "\n")
    expected = [Document("set.jsonl:1", "the text", "prose"), Document("set.jsonl:3", "the text", "prose")]
    assert read_documents(file) == expected
    assert read_documents(tmp_path) == expected


def test_line_separators_inside_a_record_do_not_break_it(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"input": "one\u2028two\x85three"}, ensure_ascii=False), encoding="utf-8")
    assert [document.text for document in read_documents(file)] == ["one\u2028two\x85three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.jsonl", b"\n", "a.jsonl: the file is empty"),
        ("a.py", b"x = '\xff'", "a.py: not UTF-8 text .byte 5."),
        ("a.png", b"\x89PNG", "a.png: a file of unknown kind"),
        ("a.jsonl", b'{"input": "x"}\n{"input": ', "a.jsonl:2: not a line of JSON"),
        ("a.jsonl", b'{"input": "x"}\n\n{"text": "x"}', "a.jsonl:3: no text under"),
        ("a.jsonl", b"[1]", "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"input": 7}', "a.jsonl:1: no text under"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path / name)


def test_missing_path_and_folder_without_documents(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no documents found"):
        read_documents(tmp_path)


def test_undecodable_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8"):
        read_documents(tmp_path)


def test_standard_library_is_code_in_order() -> None:
    found = standard_library_documents(minimum_characters=5_000)
    names = [document.name for document in found]
    assert len(found) > 50
    assert names == sorted(names)
    assert {"argparse.py", "threading.py"} <= set(names)
    assert not any(re.search(r"^test|/|stringprep|_sysconfigdata", name) for name in names)
    assert all(document.kind == "code" and len(document.text) >= 5_000 for document in found)
    assert standard_library_documents(minimum_characters=5_000, limit=7) == found[:7]
    assert standard_library_documents(limit=0) == []
    with pytest.raises(FileNotFoundError, match="no modules of at least"):
        standard_library_documents(minimum_characters=10**9)


def test_packaged_prose_by_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "prose"
    folder.mkdir(parents=True)
    for name in ("heldout_b.txt", "heldout_a.txt", "demo.txt", "SOURCES.md"):
        (folder / name).write_text(f"“{name}”", encoding="utf-8")
    monkeypatch.setattr("namm.tasks.documents.resources.files", lambda package: tmp_path)
    assert [document.name for document in packaged_prose()] == ["demo.txt", "heldout_a.txt", "heldout_b.txt"]
    assert packaged_prose("heldout_")[0] == Document("heldout_a.txt", "“heldout_a.txt”", "prose")
    with pytest.raises(FileNotFoundError, match="'tale'; there is: demo"):
        packaged_prose("tale")


@given(TEXTS, TEXTS, st.integers())
def test_splits_never_share_and_do_not_depend_on_company(ours: list[str], others: list[str], seed: int) -> None:
    alone = split_documents([prose(text) for text in ours], seed=seed)
    mixed = split_documents([prose(" " + text + "\n", "b") for text in others + ours], seed=seed)
    words = {name: {" ".join(document.text.split()) for document in split} for name, split in mixed.items()}
    assert sum(map(len, words.values())) == len(set().union(*words.values()))
    assert sum(map(len, alone.values())) == len(ours)
    for name, split in alone.items():
        assert {" ".join(document.text.split()) for document in split} <= words[name]


def test_split_sizes_follow_the_fractions_and_the_seed_matters() -> None:
    documents = [prose(f"document {number}") for number in range(2_000)]
    fractions = {"train": 0.5, "validation": 0.3, "test": 0.2}
    splits = split_documents(documents, seed=0, fractions=fractions)
    for name, share in fractions.items():
        assert abs(len(splits[name]) / len(documents) - share) < 0.05
    assert splits["train"] == [document for document in documents if document in set(splits["train"])]
    assert split_documents(documents, seed=1, fractions=fractions)["train"] != splits["train"]
    assert split_documents(documents, seed=0, fractions={"all": 1.0, "none": 0.0})["none"] == []


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_wrong_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions must not be negative and must sum to 1"):
        split_documents([], seed=0, fractions=fractions)


def test_pieces_of_equal_length() -> None:
    pieces = cut_documents([Document("a.txt", "abcdefg", "prose"), Document("b.py", "xy", "code")], 3)
    assert pieces == [Document("a.txt (1)", "abc", "prose"), Document("a.txt (2)", "def", "prose")]
