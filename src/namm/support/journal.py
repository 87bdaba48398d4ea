"""Finished work in a file of JSON lines: what long runs resume from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from namm.support.files import strict_json
from namm.support.lock import lock

Row = dict[str, Any]
BEGINNING = b'{"key": '  # of every line


class Journal:
    """Results by their keys. Each is appended as it comes; a last line cut short by a kill is dropped.

    A number that is NaN or infinite is None in a row, and null in its line.

    Attributes:
        path: of the file, or None to keep results in memory only.
        rows: results so far, each with its ``"key"``.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ValueError if the file is no journal, before anything of it is touched, or is in use."""
        self.path = path
        self.rows: dict[str, Row] = {}
        if path is None:
            return
        self._lock = lock(path.with_name(f".{path.name}.lock"))
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, TypeError, KeyError, RecursionError):
                self._refuse(number)
        torn = content[len(whole) :]
        if torn:
            if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
                self._refuse(whole.count(b"\n") + 1)
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            self._lock.release()

    def add(self, key: str, row: Row) -> Row:
        """Write a result down; it is on disk when this returns."""
        line = strict_json({"key": key} | row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.rows[key] = json.loads(line)  # what a resumed run will read
        return self.rows[key]

    def get(self, key: str, measure: Callable[[], Row]) -> Row:
        """The result under a key, measured now if it isn't there."""
        return self.rows[key] if key in self.rows else self.add(key, measure())

    def _refuse(self, line: int) -> None:
        raise ValueError(f"{self.path}:{line} is no result of an earlier run; mend or delete the file") from None
