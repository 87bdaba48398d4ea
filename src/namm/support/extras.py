"""Packages that only parts of the library need: asked for before any work, and imported where they are used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def need(module: str, extra: str) -> Any:
    """A module, imported; `require` for where it is not installed."""
    require([module], extra)
    return import_module(module)


def require(modules: Sequence[str], extra: str) -> None:
    """Nothing, where all of these can be imported; none of them is loaded.

    Args:
        modules: names as they are imported, such as ``rouge_score.rouge_scorer``.
        extra: of this package, which installs them.

    Raises:
        ImportError: one sentence with all packages that are missing and how to install them.
    """
    packages = dict.fromkeys(module.split(".")[0] for module in modules)
    missing = [package.replace("_", "-") for package in packages if not _installed(package)]
    if missing:
        raise ImportError(f"this needs {' and '.join(missing)}: pip install 'namm[{extra}]'")


def _installed(package: str) -> bool:
    """None in `sys.modules` is how Python is told that a module can't be imported."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None
