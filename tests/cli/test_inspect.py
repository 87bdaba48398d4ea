from __future__ import annotations

import json
from pathlib import Path

import pytest
from inspected import TEXT
from typer.testing import CliRunner

import namm.cli.common
from namm import NAMM, NAMMConfig, load_model
from namm.cli import app

runner = CliRunner()
CODE = '# why\ndef f(x):\n    """Doc."""\n    return x + "1"\n' * 6


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, reader_folder: Path) -> None:
    """Every command gets a random model and a tokenizer that says where its tokens stand."""
    pair = load_model(str(reader_folder), dtype="float32", device="cpu")
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: pair)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.txt").write_text("Another text, of 12 words or so, that is read beside the first one.\n" * 4)
    (folder / "c.py").write_text(CODE)
    return folder


def run(*arguments: object):
    return runner.invoke(app, ["inspect", *map(str, arguments)])


def test_a_page_of_two_memories_and_a_rule(tmp_path: Path, texts: Path, memory: str) -> None:
    other = tmp_path / "other"
    NAMM(NAMMConfig(update_interval=32)).save_pretrained(other)
    page = tmp_path / "page.html"
    result = run(
        texts / "a.txt", "-o", page, "--memory", memory, "--memory", other, "--policy", "h2o", "--policy", "namm"
    )
    assert result.exit_code == 0, result.output
    written = page.read_text(encoding="utf-8")
    for name in (f"namm ({memory})", f"namm ({other})", "h2o"):
        assert f'"name": {json.dumps(name)}' in written
    assert "function word" in result.output


def test_classes_of_a_folder(tmp_path: Path, texts: Path, memory: str) -> None:
    out = tmp_path / "out"
    result = run(
        texts, "--classes", out, "--memory", memory, "--policy", "namm", "--policy", "streaming", "--kept", 0.5
    )
    assert result.exit_code == 0, result.output
    left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert left == {"classes.json", "classes.md", "classes.png", "run.json"}
    shares = json.loads((out / "classes.json").read_text())
    assert {(share["kind"], share["policy"]) for share in shares} == {
        (kind, policy) for kind in ("code", "prose") for policy in ("namm", "streaming")
    }
    kept = {}
    for share in shares:
        kept.setdefault((share["kind"], share["policy"]), []).append(share["kept"] * share["share"])
    for kind in ("code", "prose"):  # on an equal footing, but for a rule's rounding
        assert sum(kept[kind, "namm"]) == pytest.approx(sum(kept[kind, "streaming"]), abs=0.05)
    assert "| comment | namm |" in (out / "classes.md").read_text()
    again = run(texts, "--classes", out, "--memory", memory, "--json", "--budget", 40)
    assert again.exit_code == 0, "a table of ours is made anew"
    found = json.loads(again.stdout)
    assert found["folder"] == str(out) and {share["policy"] for share in found["classes"]} == {"namm"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "is empty"),
        ("blank.txt", " \n\t\n", "is empty"),
        ("bad.jsonl", "{", "bad.jsonl:1: not a line of JSON"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("none.txt", None, "no such file"),
    ],
)
def test_what_is_no_text_is_refused(name, content, message, tmp_path: Path, memory: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    result = run(file, "-o", tmp_path / "page.html", "--memory", memory)
    assert result.exit_code == 1 and message.lower() in result.output.lower().replace("\n", " "), result.output
    assert not (tmp_path / "page.html").exists()


def test_a_file_of_any_name_is_read(tmp_path: Path, memory: str) -> None:
    (tmp_path / "LICENSE").write_text("All rights, and more.\n" * 3)
    result = run(tmp_path / "LICENSE", "-o", tmp_path / "page.html", "--memory", memory)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what to write"),
        (("-o", "none/page.html"), "none is no folder"),
        (("--classes", "out", "--policy", "h3o"), "unknown policy 'h3o'"),
        (("--classes", "out", "--memory", "nothing"), "no memory 'nothing'"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message, texts: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(texts / "a.txt", *arguments)
    assert result.exit_code == 1 and message in result.output.replace("\n", " "), result.output


def test_a_page_shows_one_text(texts: Path, tmp_path: Path) -> None:
    result = run(texts, "-o", tmp_path / "page.html")
    assert result.exit_code == 1 and "a page shows one text, and these are 3" in result.output.replace("\n", " ")
