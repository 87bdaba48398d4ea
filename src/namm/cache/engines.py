"""The engines by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from namm.cache.engine import Engine
from namm.cache.loops import Loops
from namm.cache.padded import Padded
from namm.models.rope import Rotary
from namm.policies.base import Policy

Maker = Callable[[Policy, int, Rotary | None], Engine]
ENGINES: dict[str, Maker] = {"loops": Loops, "padded": Padded}


def engine_of(name: str, policy: Policy) -> tuple[str, Maker]:
    """The engine of that name, or "loops" where the policy takes no other, and its name."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name != "loops" and not policy.takes_grids:
        warnings.warn(
            f"{type(policy).__name__} decides head by head, so the engine is 'loops' and not {name!r}", stacklevel=3
        )
        name = "loops"
    return name, ENGINES[name]
