from __future__ import annotations

from dataclasses import dataclass

from namm.policies.base import Policy


@dataclass
class Full(Policy):
    """Keeps everything; attention runs through PyTorch's own sdpa. The reference every rule is measured against."""

    name = "full"
    update_interval: int | None = None
