"""The lowest versions that pyproject.toml names, as constraints for pip: ``make test-lowest``.

    python tests/lowest.py [EXTRA ...]

What a dependency needs itself may be newer than what is named here; pip then says so, and the range is not honest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)")


def lowest(extras: list[str]) -> list[str]:
    """Pinned requirements: of the library, and of some of its extras."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = list(project["dependencies"])
    for extra in extras:
        named += project["optional-dependencies"][extra]
    found = []
    for requirement in named:
        if match := REQUIREMENT.match(requirement):
            found.append(f"{match[1]}=={match[2]}")
        elif not requirement.startswith("namm["):
            raise ValueError(f"{requirement!r} has no lowest version")
    return found


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
