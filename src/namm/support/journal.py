"""Finished work in a file of JSON lines: what long runs resume from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Results by their keys. Each is appended as it comes; a last line cut short by a kill is dropped.

    Attributes:
        path: of the file, or None to keep results in memory only.
        rows: results so far, each with its ``"key"``.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path is None or not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}:{number} is no result of an earlier run; mend or delete the file") from None

    def add(self, key: str, row: Row) -> Row:
        """Write a result down; it is on disk when this returns."""
        self.rows[key] = {"key": key} | row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[key]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self.rows[key]

    def get(self, key: str, measure: Callable[[], Row]) -> Row:
        """The result under a key, measured now if it isn't there."""
        return self.rows[key] if key in self.rows else self.add(key, measure())
