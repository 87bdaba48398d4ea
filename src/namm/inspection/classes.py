"""What kind of token it is: of code by a lexer, of English prose by word lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String
from pygments.util import ClassNotFound

from namm.tasks.documents import Document

CODE_CLASSES = ("comment", "docstring", "white space", "keyword", "identifier", "string", "number", "punctuation")
PROSE_CLASSES = ("function word", "content word", "number", "punctuation", "white space", "repeated phrase")
PHRASE = 4  # words that must come again, in this order, to count as a repeated phrase

# English words of the closed classes: articles and determiners, pronouns, prepositions, conjunctions, auxiliaries,
# particles. What an apostrophe shortens is split at it.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those each every either neither some any no all both half such what which whose
        i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
        myself yourself himself herself itself ourselves yourselves themselves who whom whoever whatever
        someone somebody something anyone anybody anything everyone everybody everything nobody nothing none one
        of in on at by for with about against between among into through during before after above below to from up
        down out off over under upon within without toward towards across along around behind beside beneath beyond
        near since till until unto despite except like per via as than
        and or but nor so yet if because although though while whereas whether unless lest when where why how
        am is are was were be been being do does did doing done have has had having
        can could may might must shall should will would ought need dare used
        not n t s re ve ll d m there here then thus too very also only just even still again ever never
        """,
    )
)
_WORD = re.compile(r"(?P<word>[^\W\d_]+)|(?P<number>\d+(?:[.,]\d+)*)|(?P<blank>\s+)|(?P<mark>[^\w\s]|_)")


def token_classes(document: Document, spans: np.ndarray) -> list[str]:
    """The class of each token: that of most of its characters that are not blank.

    A token of blanks alone is white space, also within a comment or a docstring.

    Args:
        spans: ``[tokens, 2]``, see `Inspection.spans`. Empty tokens have the class of the one before.

    Raises:
        ValueError: for code in a language that Pygments does not know.
    """
    end = int(spans[-1, 1])
    pieces = _code_pieces(document, end) if document.kind == "code" else _prose_pieces(document.text[:end])
    by_character = ["white space"] * end
    for start, stop, name in pieces:
        by_character[start:stop] = [name] * (min(stop, end) - start)
    classes: list[str] = []
    for start, stop in spans:
        found = Counter(by_character[at] for at in range(start, stop) if not document.text[at].isspace())
        if found:
            classes.append(found.most_common(1)[0][0])
        else:
            classes.append("white space" if stop > start or not classes else classes[-1])
    return classes


def _code_pieces(document: Document, end: int) -> Iterator[tuple[int, int, str]]:
    try:
        lexer = get_lexer_for_filename(document.name, document.text)
    except ClassNotFound:
        raise ValueError(f"{document.name}: Pygments knows no language of this name") from None
    for start, kind, text in lexer.get_tokens_unprocessed(document.text[:end]):
        yield start, start + len(text), _code_class(kind, text)


def _code_class(kind: Any, text: str) -> str:
    if not text.strip():
        return "white space"
    for family, name in (
        (String.Doc, "docstring"),
        (Comment, "comment"),
        (Keyword, "keyword"),
        (Operator.Word, "keyword"),
        (Name, "identifier"),
        (Number, "number"),
        (String, "string"),
        (Literal, "string"),
    ):
        if kind in family:
            return name
    return "punctuation"


def _prose_pieces(text: str) -> list[tuple[int, int, str]]:
    pieces: list[tuple[int, int, str]] = []
    words: list[tuple[int, str]] = []  # index of the piece, and the word
    for found in _WORD.finditer(text):
        name = {"blank": "white space", "mark": "punctuation", "number": "number"}.get(str(found.lastgroup))
        if name is None:
            words.append((len(pieces), found[0].lower()))
            name = "function word" if words[-1][1] in _FUNCTION_WORDS else "content word"
        pieces.append((*found.span(), name))
    for index in _repeated(words):
        pieces[index] = (*pieces[index][:2], "repeated phrase")
    return pieces


def _repeated(words: Sequence[tuple[int, str]]) -> set[int]:
    """Pieces whose words stand in a phrase that stood before, without overlap."""
    first: dict[tuple[str, ...], int] = {}
    again: set[int] = set()
    for at in range(len(words) - PHRASE + 1):
        phrase = tuple(word for _, word in words[at : at + PHRASE])
        if first.setdefault(phrase, at) <= at - PHRASE:
            inside = [index for index, _ in words[at : at + PHRASE]]
            again.update(inside)
            again.update(index for before, after in pairwise(inside) for index in range(before + 1, after))
    return again
