from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from namm.support.journal import Journal


def test_results_are_found_again_and_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        journal.get("a", lambda: {"value": 1})
    assert Journal(file).get("a", lambda: pytest.fail("measured again")) == {"key": "a", "value": 1}


@pytest.mark.parametrize("torn", ["{", '{"key"', '{"key": "b", "val'])
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        journal.add("a", {"value": 1})
    with file.open("a") as end:
        end.write(torn)
    with Journal(file) as journal:
        assert list(journal.rows) == ["a"]
        journal.add("b", {"value": 2})
    assert Journal(file).rows["b"]["value"] == 2


@pytest.mark.fault("B13", siblings="notes without a line end, whose only line was taken for a torn one")
@pytest.mark.parametrize(
    "content, line",
    [('{"key": "a"}\nnonsense\n', 2), ("my notes", 1), ('first line\n{"key": "b', 1), ('{"key": "a"}\nmy notes', 2)],
)
def test_a_file_of_somebody_else_is_named_and_left_as_it_is(tmp_path: Path, content: str, line: int) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"journal.jsonl:{line} is no result"):
        Journal(file)
    assert file.read_text() == content


@pytest.mark.fault("B13", siblings="evolution, whose every sample was scored twice")
def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file), pytest.raises(ValueError, match="another run is at work"):
        Journal(file)
    with Journal(file):
        pass


@pytest.mark.fault("A10", siblings="table.json, --json of compare, plan and generate, classes.json")
def test_lines_are_strict_json_and_resumed_rows_are_the_first_ones(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        first = journal.add("a", {"score": math.nan, "place": (1.0, -math.inf)})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert first == {"key": "a", "score": None, "place": [1.0, None]}
    assert json.loads(file.read_text(), parse_constant=refuse) == first == Journal(file).rows["a"]
