"""A policy as plain settings, and from them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from namm.memory import NAMM
from namm.policies import BUDGETED, Full, NAMMPolicy, Policy

KINDS: dict[str, type[Policy]] = {"namm": NAMMPolicy, "full": Full, **BUDGETED}


@dataclass(frozen=True)
class Described:
    """What a policy is made from.

    Attributes:
        name: of its kind, see `KINDS`; or of a class that is not the library's.
        settings: its fields but the memory; None for such a class.
    """

    name: str
    settings: Mapping[str, Any] | None

    @classmethod
    def of(cls, policy: Policy) -> Described:
        if KINDS.get(policy.name) is not type(policy):
            return cls(policy.name, None)
        kind: Any = type(policy)
        names = [field.name for field in fields(kind) if field.name != "memory"]
        return cls(policy.name, {name: getattr(policy, name) for name in names})

    def make(self, memory: NAMM | None) -> Policy:
        """The policy.

        Args:
            memory: for one that needs one.

        Raises:
            ValueError: for a class that is not the library's, or settings that this version does not know.
        """
        if self.settings is None or self.name not in KINDS:
            raise ValueError(f"{self.name!r} is no policy of this library: give it as policy=")
        own = {} if memory is None else {"memory": memory}
        try:
            return KINDS[self.name](**own, **self.settings)
        except TypeError as error:
            raise ValueError(
                f"the policy {self.name!r} was made by another version ({error}): give it as policy="
            ) from None
