from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import namm

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., str]:
    """Run an example with arguments, and give what it printed."""

    def run(example: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{example.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        example.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A random memory that decides often, so that little is enough to see it forget."""
    config = namm.NAMMConfig(update_interval=16)
    namm.NAMM(config).save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"
