"""The policies of an evaluation, on equal footing."""

from __future__ import annotations

from collections.abc import Sequence

from namm.memory import NAMM
from namm.policies import BUDGETED, Full, NAMMPolicy, Policy

POLICIES: tuple[str, ...] = ("full", "namm", *BUDGETED)


def check_policies(names: Sequence[str]) -> None:
    """Raises ValueError naming what is unknown."""
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise ValueError(f"unknown policy {unknown[0]!r}: choose from {', '.join(POLICIES)}")


def make_policy(name: str, budget: float | None, memory: NAMM) -> Policy:
    """A policy by its name; all decide at the memory's update interval.

    Args:
        budget: fraction to keep. The memory aims at it (None: its own choice), a hand-designed rule meets it, the full
            cache ignores it.

    Raises:
        ValueError: for a hand-designed rule without a fraction above 0 and at most 1.
    """
    if name == "full":
        return Full()
    if name == "namm":
        return NAMMPolicy(memory, kept=budget)
    if not isinstance(budget, int | float) or not 0.0 < budget <= 1.0:
        raise ValueError(f"policy {name!r} needs a budget, a fraction above 0 and at most 1, got {budget!r}")
    return BUDGETED[name](budget=float(budget), update_interval=memory.config.update_interval)
