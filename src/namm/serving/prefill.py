"""How a prompt goes in: piece by piece, or with a rehearsal block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from namm.cache.rehearsal import CUE, Rehearsal
from namm.policies import NAMMPolicy
from namm.policies.base import Policy
from namm.serving.jobs import Job, Reading


def rehearsing(policy: Policy) -> NAMMPolicy | None:
    """A server's policy for documents that are rehearsed; None if it does not know what to make of a rehearsal."""
    if not isinstance(policy, NAMMPolicy) or policy.memory.config.influence is None:
        return None
    return replace(policy, rehearsed=True)


def repeated(policy: Policy, instruction: Tensor) -> int:
    """Tokens of one repetition at most, which come behind what was read so far."""
    assert policy.update_interval is not None, "a policy that rehearses decides"
    return len(instruction) + CUE + policy.update_interval


def read_some(model: Any, job: Job, size: int) -> tuple[Tensor, int]:
    """Have one pass of the model for a job that has a cache, and note what it has read.

    Args:
        size: tokens of a piece.

    Returns:
        Logits of what comes next, ``[vocabulary]``, and how many tokens went through the model.
    """
    if isinstance(job, Reading) and job.instruction is not None:
        return _rehearse_some(model, job, job.instruction)
    piece = job.ids[:, job.read : job.read + size].to(model.device)
    logits: Tensor = model(piece, past_key_values=job.cache, logits_to_keep=1).logits[0, -1]
    job.read += piece.shape[1]
    return logits, piece.shape[1]


def _rehearse_some(model: Any, job: Reading, instruction: Tensor) -> tuple[Tensor, int]:
    def decided(tokens: int) -> None:
        job.read = tokens

    if job.passes is None:
        assert job.cache is not None
        job.passes = Rehearsal.of(job.cache, job.ids.to(model.device), instruction, None, decided).passes()
    logits, tokens = next(job.passes)
    return logits[0], tokens
