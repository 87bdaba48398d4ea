from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from namm.inspection import token_classes
from namm.inspection.classes import CODE_CLASSES, PROSE_CLASSES
from namm.tasks import Document

CODE = '''def add(first):
    """Add one."""
    # no more
    return f"x" if first else 1.5 + (2)
'''


def classes_of(text: str, pieces: list[str], name: str = "a.py", kind: str = "code") -> list[str]:
    """Classes of the pieces, which stand in the text in this order."""
    spans, at = [], 0
    for piece in pieces:
        at = text.index(piece, at)
        spans.append((at, at + len(piece)))
        at += len(piece)
    return token_classes(Document(name, text, kind), np.array(spans))


def test_code() -> None:
    pieces = {
        "def": "keyword",
        " add": "identifier",
        "(": "punctuation",
        "first": "identifier",
        "\n    ": "white space",
        '"""Add': "docstring",
        "# no": "comment",
        " more": "comment",
        "    ": "white space",
        "return": "keyword",
        '"x"': "string",
        " if": "keyword",
        " 1.5": "number",
        " +": "punctuation",
    }
    assert classes_of(CODE, list(pieces)) == list(pieces.values())


def test_other_languages() -> None:
    text = "int main() { /* why */ return 0; }"
    assert classes_of(text, ["int", "main", "/* why", "return", "0"], "a.c") == [
        "keyword",
        "identifier",
        "comment",
        "keyword",
        "number",
    ]
    with pytest.raises(ValueError, match=r"a\.nothing: Pygments knows no language"):
        classes_of(text, ["int"], "a.nothing")


def test_prose() -> None:
    text = "The old king didn't sleep 3,000 nights.\n\nBut then the old king did not weep."
    expected = {
        "The": "function word",
        " old": "content word",
        " didn": "content word",
        "'": "punctuation",
        "t": "function word",
        " 3,000": "number",
        ".": "punctuation",
        "\n\n": "white space",
        " weep": "content word",
    }
    assert classes_of(text, list(expected), "a.txt", "prose") == list(expected.values())


def test_repeated_phrases() -> None:
    text = "We saw the old king, alone. Then the old, king alone went. The old king."
    pieces = ["the old king, alone", "the", " old", ",", " king", " alone", " went", " The old king"]
    assert classes_of(text, pieces, "a.txt", "prose") == [
        "content word",
        *["repeated phrase"] * 5,
        "content word",
        "content word",
    ]


def test_empty_tokens_go_with_the_one_before() -> None:
    spans = np.array([(0, 3), (3, 3), (3, 4), (4, 4)])
    assert token_classes(Document("a.txt", "the 7", "prose"), spans) == [
        "function word",
        "function word",
        "white space",
        "white space",
    ]


@given(st.text(min_size=1), st.sampled_from(["a.py", "a.txt", "a.js"]))
@example("#\t", "a.py")
@example("\\\n", "a.py")
def test_every_token_of_any_text_has_a_class(text: str, name: str) -> None:
    kind = "prose" if name == "a.txt" else "code"
    spans = np.stack([np.arange(len(text)), np.arange(len(text)) + 1], axis=1)
    found = token_classes(Document(name, text, kind), spans)
    assert len(found) == len(text)
    assert set(found) <= set(PROSE_CLASSES if kind == "prose" else CODE_CLASSES)
    assert [name == "white space" for name in found] == [letter.isspace() for letter in text]
