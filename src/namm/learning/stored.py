"""Work that is done once: what was found lies in a file, from which a run that is begun again goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from namm.support.files import load_saved, save_atomically


def stored(file: Path, make: Callable[[], Any]) -> Any:
    """What is in a file, or else what `make` gives, which is then in it: tensors, numbers, text and their lists.

    Raises:
        ValueError: if the file is damaged.
    """
    if not file.exists():
        save_atomically(make(), file)
    return load_saved(file)
