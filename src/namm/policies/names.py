"""The policies of an evaluation, on equal footing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from namm.memory import NAMM
from namm.policies import BUDGETED, BudgetPolicy, Full, NAMMPolicy, Policy

POLICIES: tuple[str, ...] = ("full", "namm", *BUDGETED)
ADA = "ada-"  # before a hand-designed rule: the heads of a layer share its budget, as in AdaKV (arXiv 2407.11550)


def check_policies(names: Sequence[str]) -> None:
    """Raises ValueError naming what is unknown."""
    unknown = [name for name in names if name not in POLICIES and not is_budgeted(name)]
    if unknown:
        raise ValueError(
            f"unknown policy {unknown[0]!r}: choose from {', '.join(POLICIES)}, or {ADA}RULE, such as {ADA}h2o, for a "
            "rule whose heads share a layer's budget"
        )


def is_budgeted(name: str) -> bool:
    """Whether it names a hand-designed rule, with or without `ADA` before it."""
    return name.removeprefix(ADA) in BUDGETED


def rule_of(name: str) -> type[BudgetPolicy]:
    """The class of a hand-designed rule, with or without `ADA` before its name."""
    return BUDGETED[name.removeprefix(ADA)]


def make_policy(name: str, budget: float | None, memory: NAMM) -> Policy:
    """A policy by its name; all decide at the memory's update interval, but those that need a rehearsal at their own.

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
    return budgeted(name, float(budget), memory)


def budgeted(name: str, budget: float | int, memory: NAMM) -> BudgetPolicy:
    """A hand-designed rule by its name, with a fraction (float) or a number (int) of tokens."""
    rule = rule_of(name)
    options: dict[str, Any] = {"across": "layer"} if name.startswith(ADA) else {}
    if not rule.needs_rehearsal:  # what is rehearsed at once is a matter of the rule
        options["update_interval"] = memory.config.update_interval
    return rule(budget=budget, **options)
