"""All policies on one document, at one kept fraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from namm.memory import NAMM
from namm.policies import BUDGETED, NAMMPolicy, Policy
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
    budget: int | None = None,
    tail: int = 256,
    instruction: Tensor | None = None,
    rehearse: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> Iterator[Comparison]:
    """Full cache, then the memory, then every hand-designed rule with the fraction that the memory kept as its budget.

    All go through the same cache at the same update interval.

    Args:
        ids: ``[1, tokens]``.
        kept: fraction that the memory keeps. budget: instead, tokens that it keeps, mean over heads and layers. With
            neither it is its own choice.
        instruction: token ids ``[tokens]`` that come before the repetition in a rehearsal, see
            `namm.tasks.encode.to_repeat`; None: rules that need a rehearsal are left out.
        rehearse: with a rehearsal for all policies that look at one, else for those that need it.
        progress: called with a policy's name before it runs.

    Raises:
        ValueError: if `rehearse` comes without an instruction.
    """
    if rehearse and instruction is None:
        raise ValueError("a rehearsal needs an instruction")

    def measure(policy: Policy) -> Tail:
        progress(policy.name)
        own = instruction if rehearse or policy.needs_rehearsal else None
        return tail_loss(model, ids, policy, tail, own)

    full = measure(make_policy("full", None, memory))
    yield Comparison("full", full, 0.0)
    own = measure(NAMMPolicy(memory, kept=kept, budget=budget, rehearsed=rehearse))
    yield Comparison("namm", own, own.loss - full.loss)
    for name in [name for name, rule in BUDGETED.items() if instruction is not None or not rule.needs_rehearsal]:
        other = measure(make_policy(name, own.kept_fraction, memory))
        yield Comparison(name, other, other.loss - full.loss)
