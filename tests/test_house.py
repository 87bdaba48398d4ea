"""The order of the house: which room may know which, and what every room owes its readers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import namm

ROOT = Path(namm.__file__).parent
# From the ground up; a room may import from the floors below, not from its neighbours.
FLOORS = [
    {"support"},
    {"memory", "models"},
    {"policies"},
    {"cache"},
    {"tasks"},
    {"learning", "evolution", "evaluation", "inspection", "decision", "planning", "serving"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LONGEST = 300  # lines of a file
MODULES = {
    ".".join(("namm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The folder or file right below the package that a module is in."""
    return (module.split(".") + ["__init__"])[1]


def floor(module: str) -> int:
    (found,) = (number for number, rooms in enumerate(FLOORS) if room(module) in rooms)
    return found


def imported(tree: ast.Module, own: str, *, types: bool = True) -> Iterator[tuple[int, str]]:
    """Lines and modules of this library that a module imports, anywhere in it; `types`: also for type checking only."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(inner for part in node.body for inner in ast.walk(part))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{own}:{node.lineno} imports by a relative name"
            whole = f"{node.module}."
            names = [whole + a.name if whole + a.name in MODULES else str(node.module) for a in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "namm")


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Nodes of a circle in a graph, the first again at its end."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str] | None:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        for following in sorted(edges.get(node, ())):
            if found := walk(following, [*way, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(edges) if (found := walk(node, []))), None)


def test_every_room_has_a_floor() -> None:
    on_floors = set().union(*FLOORS)
    assert {room(module) for module in MODULES} <= on_floors
    assert sum(map(len, FLOORS)) == len(on_floors), "none is on two floors"


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up_or_to_a_neighbour(module: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line} imports {target}"
        for line, target in imported(TREES[module], module)
        if room(target) != room(module) and floor(target) >= floor(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_circles() -> None:
    rooms: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        rooms.setdefault(room(module), set()).update(room(target) for _, target in imported(tree, module))
        files[module] = {target for _, target in imported(tree, module, types=False)} - {module}
    assert circle({name: targets - {name} for name, targets in rooms.items()}) is None
    assert circle(files) is None


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Public functions and classes of a module; of the classes, methods and properties are in the test below."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_what_is_public_says_what_it_is() -> None:
    silent = [
        f"{MODULES[module]}:{node.lineno} {node.name}"
        for module, tree in TREES.items()
        for node in public(tree)
        if not ast.get_docstring(node)
    ]
    assert not silent, "without a docstring:\n" + "\n".join(silent)


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{MODULES[module]} has {lines} lines: split it where it has two ideas"
