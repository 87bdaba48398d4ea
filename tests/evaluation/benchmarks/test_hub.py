from __future__ import annotations

import json
import sys
import zipfile

import pytest

from namm.evaluation.benchmarks import hub
from namm.evaluation.benchmarks.base import Request, SkippedTaskError
from namm.evaluation.benchmarks.leval import LEVAL
from namm.evaluation.benchmarks.longbench import LONGBENCH

ROW = {"context": "x = 1", "input": "", "answers": ["y = 2"], "all_classes": None}


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list:
    """A hub whose only dataset lies in tmp_path; what was asked of it."""
    calls: list = []

    def download(dataset: str, **options: object) -> str:
        calls.append((dataset, options))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_a_file_of_the_dataset_is_read(tmp_path, asked, characters) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lcc.jsonl").write_text(json.dumps(ROW))
    (question,) = LONGBENCH["longbench/lcc"].questions(Request(characters))
    assert question.answers == ("y = 2",)
    ((dataset, options),) = asked
    assert dataset == "THUDM/LongBench" and options["repo_type"] == "dataset"
    assert "**/lcc.jsonl" in options["allow_patterns"]


def test_a_file_in_the_datasets_archive_is_read(tmp_path, asked, characters) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/lcc_e.jsonl", "")
        archive.writestr("data/lcc.jsonl", json.dumps(ROW) + "\n" + json.dumps({**ROW, "answers": []}))
    questions = LONGBENCH["longbench/lcc"].questions(Request(characters))
    assert next(questions).answers == ("y = 2",)
    with pytest.raises(ValueError, match=r"data\.zip/data/lcc\.jsonl:2: 'answers'"):
        next(questions)


def test_else_the_configuration_is_loaded(asked, characters, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: [ROW] if names[1] == "lcc" else 1 / 0)
    (question,) = LONGBENCH["longbench/lcc"].questions(Request(characters))
    assert question.context.endswith("x = 1")
    with pytest.raises(SkippedTaskError, match=r"L4NLP/LEval \(division by zero\); put tpo\.jsonl in --data FOLDER"):
        list(LEVAL["leval/tpo"].questions(Request(characters)))


def test_without_the_package_it_says_what_to_install(asked, characters, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SkippedTaskError, match=r"needs datasets: pip install 'namm\[eval\]'"):
        list(LONGBENCH["longbench/lcc"].questions(Request(characters)))


def test_the_users_own_file_comes_first(tmp_path, asked, characters) -> None:
    (tmp_path / "lcc.jsonl").write_text(json.dumps(ROW))
    assert len(list(LONGBENCH["longbench/lcc"].questions(Request(characters, tmp_path)))) == 1
    assert not asked


def test_a_hub_that_is_not_there_says_what_to_do(characters, monkeypatch) -> None:
    def unreachable(*names: object, **options: object) -> None:
        raise ConnectionError("no\nhub")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(SkippedTaskError, match=r"THUDM/LongBench \(no hub\); put lcc\.jsonl in --data FOLDER"):
        list(LONGBENCH["longbench/lcc"].questions(Request(characters)))
