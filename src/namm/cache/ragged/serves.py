"""What the engine of kernels can do, told without loading them."""

from __future__ import annotations

from typing import Any

import torch

from namm.models.rope import Rotary
from namm.policies import NAMMPolicy
from namm.policies.base import BudgetPolicy, Policy
from namm.support.extras import require


def lacks(policy: Policy, dtype: torch.dtype) -> str | None:
    """What of a policy, or of a model of this type of numbers, there is no kernel for; None: nothing."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no products of {dtype}"
    if isinstance(policy, NAMMPolicy):
        spectral = policy.memory.config.spectrogram
        return None if spectral.window <= 2 * spectral.hop else "no windows of more than two hops"
    own = vars(type(policy))
    if not isinstance(policy, BudgetPolicy) or (policy.queries != 0 and "received" not in own):
        return f"no kernel for what {type(policy).__name__} makes of attention"
    return None


def ragged(policy: Policy, layer: int, rotary: Rotary | None = None, bits: int | None = None) -> Any:
    """The engine; `triton` is imported here.

    Raises:
        ImportError: saying what to install.
    """
    require(["triton"], "ragged")
    from namm.cache.ragged.engine import Ragged

    return Ragged(policy, layer, rotary, bits)


def check_device(device: torch.device) -> None:
    """Raises ImportError or ValueError where the engine can't run on a device."""
    require(["triton"], "ragged")
    from namm.cache.ragged.launching import check_device

    check_device(device)
