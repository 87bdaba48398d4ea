"""What Prometheus is told."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from namm.cache import MemoryCache
from namm.serving.engine import Snapshot
from namm.serving.errors import ServingError
from namm.serving.jobs import Generation, Job
from namm.serving.watch import LogOnly

FIRST = 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120
EACH = 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5
SHARES = 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1


class Metrics(LogOnly):
    """A `Watch` that counts.

    Attributes:
        registry: of all that is counted.
    """

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        options: dict[str, Any] = {"registry": own}
        ProcessCollector(**options)
        self._answers = Counter("namm_http_responses", "Answers of HTTP.", ["path", "status"], **options)
        self._jobs = Counter("namm_requests", "Requests that are over, by what became of them.", ["outcome"], **options)
        self._tokens = Counter("namm_tokens", "Tokens of prompts and documents read, and said.", ["kind"], **options)
        self._first = Histogram("namm_time_to_first_token_seconds", "From arrival.", buckets=FIRST, **options)
        self._each = Histogram("namm_time_per_token_seconds", "Between two tokens.", buckets=EACH, **options)
        self._kept = Histogram("namm_kept_fraction", "Of a request's tokens, at its end.", buckets=SHARES, **options)
        gauges = {
            "queued": "Requests that wait for room.",
            "active": "Requests that hold memory.",
            "reserved": "Bytes of the budget that are reserved or held.",
            "held": "Bytes that all caches hold.",
            "documents": "Documents in memory.",
        }
        names = {"reserved": "reserved_bytes", "held": "held_bytes", "documents": "documents_in_memory"}
        self._gauges = {name: Gauge(f"namm_{names.get(name, name)}", text, **options) for name, text in gauges.items()}

    def answered(self, path: str, status: int) -> None:
        """An answer of HTTP began."""
        self._answers.labels(path, str(status)).inc()

    def show(self, snapshot: Snapshot) -> None:
        """Set what is as it is now."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(snapshot, name))

    def read(self, tokens: int) -> None:
        """See `Watch`."""
        self._tokens.labels("read").inc(tokens)

    def said(self, job: Generation) -> None:
        """See `Watch`."""
        now = time.monotonic()
        if len(job.said) == 1:
            self._first.observe(now - job.arrived)
        else:
            self._each.observe(now - job.latest)
        job.latest = now
        self._tokens.labels("said").inc()

    def kept(self, cache: MemoryCache) -> None:
        """See `Watch`."""
        self._kept.observe(cache.stats().kept_fraction)

    def over(self, job: Job, outcome: str) -> None:
        """See `Watch`."""
        self._jobs.labels(outcome).inc()

    def failed(self, job: Job, error: ServingError, cause: Exception | None) -> None:
        """See `Watch`."""
        super().failed(job, error, cause)
        self._jobs.labels("refused" if error.status < 500 else "failed").inc()
