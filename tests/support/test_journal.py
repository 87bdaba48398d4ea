import pytest

from namm.support.journal import Journal


def test_results_are_found_again_and_measured_once(tmp_path):
    file = tmp_path / "journal.jsonl"
    Journal(file).get("a", lambda: {"value": 1})
    assert Journal(file).get("a", lambda: pytest.fail("measured again")) == {"key": "a", "value": 1}


def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path):
    file = tmp_path / "journal.jsonl"
    Journal(file).add("a", {"value": 1})
    with file.open("a") as end:
        end.write('{"key": "b", "val')
    journal = Journal(file)
    assert list(journal.rows) == ["a"]
    journal.add("b", {"value": 2})
    assert Journal(file).rows["b"]["value"] == 2


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "journal.jsonl"
    file.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match="journal.jsonl:2"):
        Journal(file)
