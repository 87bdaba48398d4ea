"""Rows of other people's files: what is not there or not of the right kind is named by file, line and key."""

from __future__ import annotations

import json
import reprlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = tuple[str, Mapping[str, Any]]  # where it is from (file:line), and the object


def read_utf8(file: Path | zipfile.Path) -> str:
    """The text of a UTF-8 file with plain line breaks, without a byte order mark.

    Raises:
        ValueError: naming the byte that is not UTF-8.
        FileNotFoundError: if there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 text (byte {error.start}); convert it, or keep it out of the folder"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(file: Path | zipfile.Path) -> Iterator[Row]:
    """The objects of a file of JSON lines; blank lines are passed over.

    Raises:
        ValueError: naming the line that is not a JSON object, or the byte that is not UTF-8.
    """
    for number, line in enumerate(read_utf8(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json.loads(line)
            if "\\u" in line:  # half of a pair of them is no character, and no tokenizer takes it
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: not a JSON object")
        yield where, record


def text_of(where: str, row: Mapping[str, Any], key: str) -> str:
    """A text of a row; ValueError naming place and key where it has none."""
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be a text, found {type(value).__name__}")
    return value


def texts_of(where: str, row: Mapping[str, Any], key: str, *, least: int = 1) -> tuple[str, ...]:
    """The texts of a list, without blank ones (which any text would contain); numbers are taken as texts.

    Raises:
        ValueError: naming place and key, where it is no such list, or fewer than `least` of them are not blank.
    """
    value = row.get(key)
    listed = [] if value is None else value
    if isinstance(listed, list | tuple) and all(isinstance(each, str | int | float) for each in listed):
        texts = tuple(str(each) for each in listed if str(each).strip())
        if len(texts) >= least:
            return texts
    more = f", at least {least} of them not blank" if least else ""
    raise ValueError(f"{where}: {key!r} must be a list of texts{more}, found {reprlib.repr(value)}")
