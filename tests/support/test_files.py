from __future__ import annotations

import ast
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
    with pytest.raises(Exception, match="local object"):
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


SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


def opened_as_text(source: str) -> list[ast.Call]:
    """Calls that open a file as text: `open`, and methods of paths."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in ("os", "common")
        name = node.func.attr if isinstance(node.func, ast.Attribute) and method else ast.unparse(node.func)
        modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
        if name == "open" and not binary or method and name in ("read_text", "write_text"):
            found.append(node)
    return found


@pytest.mark.fault("C19", siblings="memory cards and configurations, tables, classes, claims")
def test_every_text_is_utf_8_whatever_the_locale() -> None:
    calls = [(path, call) for path in SOURCES for call in opened_as_text(path.read_text(encoding="utf-8"))]
    assert len(calls) > 5
    named = [(path, call) for path, call in calls if all(word.arg != "encoding" for word in call.keywords)]
    assert not [f"{path.name}:{call.lineno}" for path, call in named]
