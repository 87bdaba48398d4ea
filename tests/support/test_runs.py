from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from namm.support.runs import RUN_FILE, check_output, check_output_file, claim
from namm.support.version import VERSION


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.fault("B12", siblings="a memory's own folder, a folder of texts, a folder that holds the model")
def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json, model\.safetensors.*new or empty folder"):
        check_output(tmp_path)
    with pytest.raises(ValueError, match="new or empty folder"), claim(tmp_path, "distillation", {}):
        pass
    assert contents(tmp_path) == before


def test_new_empty_and_own_folders_are_taken(tmp_path: Path) -> None:
    check_output(tmp_path / "new", inputs=["owner/name", "", None, tmp_path / "missing"])
    (tmp_path / ".git").mkdir()
    check_output(tmp_path)
    with claim(tmp_path, "distillation", {"seed": 1}):
        (tmp_path / "model.safetensors").write_bytes(b"weights")
    check_output(tmp_path)


@pytest.mark.fault("B12")
@pytest.mark.parametrize(
    "output, read, said", [("a", "a", "is"), ("a", "a/b", "contains"), ("a/b", "a", "lies in"), ("a/link", "a/b", "is")]
)
def test_an_output_among_the_inputs_is_refused(tmp_path: Path, output: str, read: str, said: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    with pytest.raises(ValueError, match=f"{said} the input"):
        check_output(tmp_path / output, inputs=[tmp_path / read])


@pytest.mark.fault("B12")
def test_an_output_file_is_no_input(tmp_path: Path) -> None:
    notes, other = tmp_path / "notes.txt", tmp_path / "other.txt"
    notes.write_text("notes")
    os.link(notes, other)
    check_output_file(tmp_path / "page.html", [notes])
    for output, read in ((notes, notes), (other, notes), (notes, tmp_path), (tmp_path, notes)):
        with pytest.raises(ValueError, match="over the input|is a folder"):
            check_output_file(output, [read])


def test_what_was_begun_with_something_else_is_named(tmp_path: Path) -> None:
    with claim(tmp_path, "distillation", {"model": "a", "seed": 1}):
        (tmp_path / "result").write_text("1")
    with claim(tmp_path, "distillation", {"model": "a", "seed": 1}):
        pass
    with (
        pytest.raises(ValueError, match="work of another distillation, which differs in: model;"),
        claim(tmp_path, "distillation", {"model": "b", "seed": 1}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="work of another distillation, which differs in: run, model, seed, texts;"),
        claim(tmp_path, "evolution", {"texts": "c"}),
    ):
        pass


@pytest.mark.fault("C19", siblings="distilling and refining, whose claims came before their first work too")
def test_a_try_without_results_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claim(tmp_path, "evolution", {"seed": -1}):
        (tmp_path / "work").mkdir()
        raise ZeroDivisionError
    with claim(tmp_path, "evolution", {"seed": 1}):
        assert json.loads((tmp_path / RUN_FILE).read_text())["seed"] == 1


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps({"run": "distillation", "version": "0.0.1"}))
    (tmp_path / "result").write_text("1")
    with pytest.raises(
        ValueError, match=rf"the work of namm 0.0.1 \(distillation\), which namm {VERSION} can't go on with"
    ):
        check_output(tmp_path)


@pytest.mark.parametrize("content", ["", '{"run": "disti', "[]", "{}"])
@pytest.mark.fault("B14")
def test_a_damaged_claim_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN_FILE).write_text(content)
    (tmp_path / "result").write_text("1")
    with pytest.raises(ValueError, match=r"run\.json"):
        check_output(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from namm.support.runs import claim
with claim(Path(sys.argv[1]), "distillation", {}):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault("B13", siblings="distilling and refining, which had no lock either")
def test_two_runs_in_one_folder_and_a_killed_one(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match="another run is at work"), claim(tmp_path, "distillation", {}):
            pass
    finally:
        other.kill()
        other.wait()
    with claim(tmp_path, "distillation", {}):
        pass
