"""All policies on one document, at one kept fraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from namm.memory import NAMM
from namm.policies import BUDGETED, Policy
from namm.policies.names import make_policy
from namm.tasks.answering import Tail, tail_loss


@dataclass(frozen=True)
class Comparison:
    """One row of the table: a policy's `Tail` and how much it loses to the full cache, nats a token."""

    policy: str
    tail: Tail
    rise: float


def compare(
    model: PreTrainedModel,
    ids: Tensor,
    memory: NAMM,
    *,
    kept: float | None = None,
    tail: int = 256,
    progress: Callable[[str], None] = lambda name: None,
) -> Iterator[Comparison]:
    """Full cache, then the memory, then every hand-designed rule with the fraction that the memory kept as its budget.

    All go through the same cache at the same update interval.

    Args:
        ids: ``[1, tokens]``.
        kept: fraction the memory aims at; None: its own choice.
        progress: called with a policy's name before it runs.
    """

    def measure(policy: Policy) -> Tail:
        progress(policy.name)
        return tail_loss(model, ids, policy, tail)

    full = measure(make_policy("full", None, memory))
    yield Comparison("full", full, 0.0)
    own = measure(make_policy("namm", kept, memory))
    yield Comparison("namm", own, own.loss - full.loss)
    for name in BUDGETED:
        other = measure(make_policy(name, own.kept_fraction, memory))
        yield Comparison(name, other, other.loss - full.loss)
