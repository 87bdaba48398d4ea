"""Whatever bytes a file holds, its reader says in a sentence of its own what is wrong, and leaves it as it is."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS

BUDGET = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
Edit = tuple[float, int, bytes]  # where (as a share of the file), bytes that go, bytes that come

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 300), st.floats(), st.text(max_size=8), st.just("float32")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    for share, gone, come in edits:
        at = round(share * len(content))
        content = content[:at] + come + content[at + gone :]
    return content


def with_changes(content: bytes, changes: dict[str, Any]) -> bytes:
    """A JSON object, or the first line of a file of them, with other values."""
    line, _, rest = content.partition(b"\n") if content.count(b"{") > 1 else (content, b"", b"")
    return json.dumps(json.loads(line) | changes).encode() + b"\n" + rest


@pytest.mark.parametrize("name", READERS)
@BUDGET
@given(content=st.binary(max_size=200))
def test_any_bytes(name: str, content: bytes) -> None:
    READERS[name][0](content)


@pytest.mark.fault("B13", siblings="every file that a command reads")
@pytest.mark.parametrize("name", READERS)
@BUDGET
@given(data=st.data(), edits=EDITS)
def test_a_file_with_damages(name: str, data: st.DataObject, edits: list[Edit]) -> None:
    reader, files = READERS[name]
    reader(edited(data.draw(st.sampled_from(files)), edits))


@pytest.mark.fault("C18", siblings="every key of the configurations, with values of every kind")
@pytest.mark.parametrize("name", ["memory-config", "rows", "journal", "json", "model-config"])
@BUDGET
@given(data=st.data())
def test_json_of_other_kinds(name: str, data: st.DataObject) -> None:
    reader, files = READERS[name]
    keys = list(json.loads(files[0].partition(b"\n")[0] if name in ("rows", "journal") else files[0]))
    changes = st.dictionaries(st.sampled_from(keys) | st.text(max_size=4), VALUES, max_size=3)
    whole = data.draw(st.booleans())
    reader(with_changes(files[0], data.draw(changes)) if whole else json.dumps(data.draw(VALUES)).encode())


TOML_KEYS = ("stages", "model", "dtype", "start", "parameters", "strategy", "population", "sigma", "metric", "kept")
TOML_KEYS += ("price", "validation", "validate_every", "patience", "test", "text", "seed", "tasks", "tokens", "samples")
TOML_VALUES = (
    "1",
    "-1",
    "0",
    "0.5",
    "nan",
    "inf",
    "-inf",
    '"x"',
    '""',
    "[]",
    "[1]",
    '["passkey"]',
    "[[1]]",
    "{}",
    "true",
)
TOML_VALUES += ("{a = 1}", "1979-05-27", "9999999999999999999999", '"longbench:x.jsonl"', "[{}]", "[nan]", '["recall"]')


@pytest.mark.fault("C18", siblings="every key of an evolution, with values of every kind")
@BUDGET
@given(
    top=st.dictionaries(st.sampled_from(TOML_KEYS), st.sampled_from(TOML_VALUES), max_size=3),
    stage=st.dictionaries(
        st.sampled_from(("tasks", "tokens", "samples", "generations", "text")), st.sampled_from(TOML_VALUES), max_size=3
    ),
)
def test_toml_of_other_kinds(top: dict[str, str], stage: dict[str, str]) -> None:
    lines = [f"{key} = {value}" for key, value in top.items()]
    lines += ["[[stages]]", 'tasks = ["passkey"]'] if "stages" not in top and "tasks" not in stage else []
    lines += ["[[stages]]"] if "stages" not in top and "tasks" in stage else []
    lines += [f"{key} = {value}" for key, value in stage.items()] if "stages" not in top else []
    text = "\n".join(lines)
    tomllib.loads(text)
    READERS["evolution"][0](text.encode())


@pytest.mark.fault("C18", siblings="JSON nested deeper than Python recurses, in every file of JSON")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"a":' * 10**5, b"x = " + b"[" * 10**5], ids=["[", "{", "="])
def test_nesting_without_an_end(name: str, content: bytes) -> None:
    READERS[name][0](content)


@pytest.mark.parametrize("name", READERS)
def test_the_files_to_begin_with_are_taken(name: str) -> None:
    """Else nothing but the first check would ever be reached."""
    reader, files = READERS[name]
    assert files
    for content in files:
        reader(content)
