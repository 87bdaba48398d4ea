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


def make_policy(name: str, budget: float | None, memory: NAMM, rehearse: bool = False) -> Policy:
    """A policy by its name; all decide at the memory's update interval, but those that need a rehearsal at their own.

    Args:
        budget: see `budget_of`. The memory takes None for its own choice, the full cache ignores it.
        rehearse: the memory looks at a rehearsal, and needs one then.

    Raises:
        ValueError: for a budget that is neither, or a hand-designed rule without one.
    """
    if name == "full":
        return Full()
    if name == "namm":
        aim = None if budget is None else budget_of(budget)
        options: dict[str, Any] = {"budget": aim} if isinstance(aim, int) else {"kept": aim}
        return NAMMPolicy(memory, **options, rehearsed=rehearse)
    if budget is None:
        raise ValueError(f"policy {name!r} needs a budget: a fraction, or a number of tokens")
    return budgeted(name, budget_of(budget), memory)


def budget_of(given: float) -> float | int:
    """A fraction (float) where the number is at most 1, or else a number (int) of tokens a head.

    Raises:
        ValueError: for anything but a fraction above 0 or a whole number.
    """
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        if 0 < given <= 1:
            return float(given)
        if 1 < given < float("inf") and given == int(given):
            return int(given)
    raise ValueError(
        f"a budget is a fraction above 0 and at most 1, or a whole number of tokens above 1, not {given!r}"
    )


def budgeted(name: str, budget: float | int, memory: NAMM) -> BudgetPolicy:
    """A hand-designed rule by its name, with a fraction (float) or a number (int) of tokens."""
    rule = rule_of(name)
    options: dict[str, Any] = {"across": "layer"} if name.startswith(ADA) else {}
    if not rule.needs_rehearsal:  # what is rehearsed at once is a matter of the rule
        options["update_interval"] = memory.config.update_interval
    return rule(budget=budget, **options)
