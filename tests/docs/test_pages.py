"""What the documents show exists: Python compiles and imports, links resolve, commands have scripts and options."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel

import namm

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("src/**/*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Command lines in blocks and in spans of code, in words."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in (*lines, *spans) if line.startswith(("python ", "make "))]


@each_page
def test_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "namm":
                assert hasattr(namm, node.attr), ast.unparse(node)


def test_the_lines_of_the_readme_run(
    reader: PreTrainedModel, characters: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks(ROOT / "README.md", "python")

    class Few:
        decode = staticmethod(characters.decode)

        def apply_chat_template(self, chat: list[dict[str, str]], add_generation_prompt: bool, **options: Any) -> Any:
            text = chat[0]["content"].encode("ascii", "replace").decode()
            assert add_generation_prompt and text.endswith("?")
            return characters(text[-600:], **options)

    monkeypatch.setattr(namm, "load_model", lambda name: (reader, Few()))
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"seen 6\d\d tokens, kept \d", capsys.readouterr().out)


def anchors(page: Path) -> set[str]:
    """Of the headings, as mkdocs and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    plain = (unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).lower() for heading in headings)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in plain}


@each_page
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"(?<!\])\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


@each_page
def test_scripts_and_targets_exist_with_their_options(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for program, name, *arguments in commands(page):
        if program == "make":
            assert name in targets, name
        elif name.endswith(".py"):
            source = (ROOT / name).read_text(encoding="utf-8")
            beside = [
                (ROOT / name).with_name(f"{module}.py") for module in re.findall(r"^from (\w+) import", source, re.M)
            ]
            source += "".join(file.read_text(encoding="utf-8") for file in beside if file.exists())
            options = [word for word in arguments if word.startswith("--")]
            assert all(f'"{option}"' in source for option in options), (name, options)
        elif name == "-m":
            assert importlib.util.find_spec(arguments[0]), arguments


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 135


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="namm.MemoryCache.settle"' in reference
    assert 'id="namm.policies.Policy.observe"' in reference


def test_every_document_is_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"(\w+\.md)$", text, re.M))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_citation_says_what_one_needs_to_cite() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)  # what the format demands
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    assert found["version"] == namm.__version__
    assert found["references"][0]["url"].endswith("2410.13166")
