from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from namm.support.files import load_saved, read_json, save_atomically, strict_json, write_atomically


@pytest.mark.fault("A10", siblings="every file and line of JSON that the library writes")
def test_numbers_that_json_has_not_are_null() -> None:
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN"}}
    assert json.loads(strict_json(value)) == {"a": [None, [1.5, None]], "b": {"c": None, "d": "NaN"}}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_atomically({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"step": lambda: 2}, path)
    assert load_saved(path) == {"step": 1}
    write_atomically(path, "text, ±\n")
    assert path.read_bytes() == "text, ±\n".encode()


@pytest.mark.fault("B14")
@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_a_cut_file_is_named(tmp_path: Path, left: int) -> None:
    saved, written = tmp_path / "state.pt", tmp_path / "run.json"
    save_atomically({"step": 1}, saved)
    write_atomically(written, json.dumps({"words": "a" * 80}))
    for path, read in ((saved, load_saved), (written, read_json)):
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ValueError, match=f"{path.name} is cut short or damaged"):
            read(path)
