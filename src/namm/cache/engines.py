"""The engines by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from namm.cache.engine import Engine
from namm.cache.loops import Loops
from namm.cache.packed import BITS
from namm.cache.padded import Padded
from namm.models.rope import Rotary
from namm.policies.base import Policy

Maker = Callable[[Policy, int, Rotary | None], Engine]
ENGINES: dict[str, Maker] = {"loops": Loops, "padded": Padded}


def engine_of(name: str, policy: Policy, bits: int | None = None) -> tuple[str, Maker]:
    """The engine of that name, or "loops" where the policy takes no other, and its name.

    Raises:
        ValueError: if there is none of that name, or it does not pack to so many bits.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name != "loops" and not policy.takes_grids:
        warnings.warn(
            f"{type(policy).__name__} decides head by head, so the engine is 'loops' and not {name!r}", stacklevel=3
        )
        name = "loops"
    if bits is None:
        return name, ENGINES[name]
    if bits not in BITS or name != "loops":
        raise ValueError(
            f"bits must be one of {', '.join(map(str, BITS))} or None, with the engine 'loops'; got {bits!r}"
        )
    return name, partial(Loops, bits=bits)
