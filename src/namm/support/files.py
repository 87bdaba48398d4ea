"""Files that are whole or old whenever a write is interrupted, and strict JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Replace a file by UTF-8 text, or by what a function writes to the path it is given."""
    commit(prepare(path, content), path)


def prepare(path: Path, content: str | Callable[[Path], object]) -> Path:
    """The first half of `write_atomically`: a file beside `path` with the new content, on disk."""
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, str):
        partial.write_text(content, encoding="utf-8", newline="\n")
    else:
        content(partial)
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    return partial


def commit(partial: Path, path: Path) -> None:
    """The second half: what was prepared takes the place of the file, also after a power cut."""
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere a folder can't be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_atomically(value: object, path: Path) -> None:
    """``torch.save`` that leaves the old file or the whole new one, whenever it is interrupted."""
    write_atomically(path, lambda partial: torch.save(value, partial))


def load_saved(path: Path) -> Any:
    """What `save_atomically` wrote, tensors on the CPU.

    Raises:
        ValueError: naming the file, if it is cut short or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch's reader of pickles fails in any way
        raise ValueError(f"{path} is cut short or damaged: delete it and start again, it is then made anew") from None


def read_json(path: Path) -> Any:
    """Raises ValueError naming the file, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is cut short or damaged: delete it, or put back the file it was") from None


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: null where a number is NaN or infinite.

    >>> strict_json({"score": math.nan})
    '{"score": null}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
