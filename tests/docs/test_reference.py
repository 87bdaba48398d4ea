"""A reference can be built from the docstrings: attributes one a line, each of them there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "namm"
ENGINE = {"layer.py", "row.py", "arithmetic.py", "padding.py"}  # of the cache, and not in the reference
ENTRY = re.compile(r"^    ?(?:    )?([A-Za-z_]\w*(?:, \w+)*): (.*)$")


def sections(docstring: str, name: str) -> Iterator[list[str]]:
    """Entries of a section, each in one line."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)+)", docstring + "\n", re.M)
    if found:
        yield re.sub(r"\n {5,}", " ", found[1]).strip("\n").splitlines()


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name not in ENGINE:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            yield from ((file, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def members(node: ast.ClassDef) -> set[str]:
    """Fields, class attributes, methods, and what is assigned to `self`."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            found.add(inner.id if isinstance(inner, ast.Name) else inner.attr)
        if isinstance(inner, ast.FunctionDef):
            found.add(inner.name)
    return found


def test_attributes_stand_one_a_line_and_are_there() -> None:
    wrong = []
    for file, node in classes():
        for lines in sections(ast.get_docstring(node) or "", "Attributes"):
            own = members(node)
            for line in lines:
                entry = ENTRY.match(line)
                more = [name for name in re.findall(r"\. (\w+): ", line) if name in own]
                if entry is None or entry[1] not in own or more:
                    wrong.append(f"{file.relative_to(ROOT)}: {node.name}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_what_the_reference_names_can_be_imported() -> None:
    from importlib import import_module

    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert len(names) > 30
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name
