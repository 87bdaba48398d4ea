"""The benchmarks run, on a random model that reads bytes, and write what the tables are made from."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import render  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("loss", "loss_table"),
        ("recall", "recall_table"),
        ("speed", "speed_table"),
        ("window", "window_table"),
        ("evolution", "population_table"),
        ("page", "page_table"),
    ],
)
def test_a_benchmark_writes_what_its_table_needs(
    script: str, table: str, reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setenv("PATH", "")  # no browser
    run(monkeypatch, f"{script}.py", "--quick", "--model", reader_folder, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["command"].startswith(f"python benchmarks/{script}.py --quick")
    lines = getattr(render, table)(found).splitlines()
    assert len(lines) > 2 and "nan" not in lines[-1]
    assert render.origin(found).count("weights") == 2


def test_starting_is_measured_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "startup.py", "--quick", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert "`import namm` / `import torch`" in render.startup_table(found)
    assert "weights" not in render.origin(found)


def test_a_search_starts_every_strategy_alike(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "small.toml"
    config.write_text(
        f'model = "{reader_folder}"\nparameters = "scorer"\npopulation = 2\nvalidation = 1\ntest = 1\n'
        '[[stages]]\ntasks = ["pass_key"]\ntokens = [300]\nsamples = 1\ngenerations = 2\n',
        encoding="utf-8",
    )
    out, file = tmp_path / "out", tmp_path / "found.json"
    run(monkeypatch, "search.py", out, "--config", config, "--quick", "--json", file)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["strategy"] for row in rows] == ["cma-separable", "random"]
    assert rows[0]["start"] == rows[1]["start"]
    assert {row["candidates"] for row in rows} == {2}
    assert render.search_table({"rows": rows}).splitlines()[-1].startswith("| random | 2 | 1 |")


def test_a_benchmark_that_was_stopped_goes_on(tmp_path: Path) -> None:
    import measuring

    made = {"model": {"fingerprint": "1"}}
    arguments: Any = measuring.parser("", "found").parse_args(["--json", str(tmp_path / "found.json")])
    first = measuring.Measurements(arguments, made)
    first.row(lambda: {"loss": 1.0}, passage="a")
    with first.journal:
        pass  # stopped
    again = measuring.Measurements(arguments, made)
    assert again.row(lambda: pytest.fail("measured twice"), passage="a") == {"passage": "a", "loss": 1.0}
    with again.journal:
        pass
    other = measuring.Measurements(arguments, {"model": {"fingerprint": "2"}})
    assert other.row(lambda: {"loss": 2.0}, passage="a")["loss"] == 2.0
    other.write()
    assert not list(tmp_path.glob("*.journal.jsonl")) and (tmp_path / "found.json").exists()
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"] == [{"passage": "a", "loss": 2.0}]
