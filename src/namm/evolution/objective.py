"""What a search may be asked for: the names of its metrics, and what bounds them."""

from __future__ import annotations

from namm.tasks.metrics import LIKELIHOOD, METRICS

NATS = "nats"
"""Mean log-probability of the reference answer's tokens less the full cache's, nats a token."""
OBJECTIVES = (NATS, LIKELIHOOD, *METRICS)
LOWEST, HIGHEST = -4.0, 1.0
"""Nats within which one sample counts: an answer that is lost is lost, and luck over the full cache is no skill."""
RUNNING_TEXT = "continuation"
"""The task whose loss must not rise."""
STEEP = 10.0
"""Fitness lost for each nat a token by which the loss of running text rises beyond what is tolerated."""


def of_full_cache(metric: str) -> float:
    """What the full cache itself scores."""
    return 0.0 if metric == NATS else 1.0
