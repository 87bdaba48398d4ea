"""Nothing heavy is imported before it is needed; no test here looks at a clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

import namm
from namm.cli import COMMANDS, options
from namm.cli.refine import refine

HEAVY = "heavy = [m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy')]"


def python(*code: str) -> str:
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.fault("C21", siblings="`import namm.cli`, every command's --help")
def test_importing_the_package_imports_nothing_heavy() -> None:
    told = python("import sys, namm", HEAVY, "print(heavy, len([m for m in sys.modules if m.startswith('namm')]))")
    assert told == "[] 3\n", "namm, namm.support, namm.support.version"


@pytest.mark.fault("C21")
@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=lambda some: " ".join(some) or "namm")
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    told = python(
        "import sys, atexit",
        f"def tell():\n    {HEAVY}\n    print('HEAVY', heavy, [m for m in sys.modules if m.startswith('namm.')])",
        "atexit.register(tell)",
        "from namm.cli import main",
        f"sys.argv = ['namm', *{arguments}, '--help']",
        "main()",
    )
    assert "Usage: namm" in told and "HEAVY [] " in told
    if not arguments:
        assert all(name in told for name in COMMANDS)
    rooms = told.rpartition("HEAVY")[2]
    assert "namm.evaluation" not in rooms and "namm.learning" not in rooms and "namm.tasks" not in rooms


def test_all_names_are_still_there() -> None:
    assert namm.policies.H2O.name == "h2o"
    told = python("import namm", "print(namm.tasks.Document.__name__, namm.evaluation.compare.__name__)")
    assert told == "Document compare\n"
    assert set(namm.__all__) <= set(dir(namm))
    for name in namm.__all__:
        assert getattr(namm, name) is getattr(namm, name)
    with pytest.raises(AttributeError, match="has no attribute 'forget'"):
        _ = namm.forget


def test_the_names_in_help_texts_are_those_of_the_library() -> None:
    from namm.evaluation.suites import SUITES
    from namm.evolution import presets
    from namm.learning import RefineConfig
    from namm.memory import shipped_memories
    from namm.models.load import EMBEDDED
    from namm.planning import packaged_configs
    from namm.policies.names import POLICIES

    assert options.POLICIES == POLICIES and tuple(SUITES) == options.SUITES
    assert sorted(options.PRESETS) == presets() and sorted(options.CONFIGS) == packaged_configs()
    assert options.DEFAULT_MODEL in EMBEDDED and options.DEFAULT_MEMORY in shipped_memories()
    assert tuple(map(float, options.REFINE_BOUNDS.split(","))) == RefineConfig.bounds
    assert RefineConfig.recall == options.REFINE_RECALL
    assert refine.__defaults__ and RefineConfig.steps in refine.__defaults__
