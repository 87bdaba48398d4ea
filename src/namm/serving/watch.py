"""What is told of a server's work, for metrics and the log."""

from __future__ import annotations

import logging
from typing import Protocol

from namm.cache import MemoryCache
from namm.serving.errors import ServingError
from namm.serving.jobs import Generation, Job, describe

log = logging.getLogger("namm.serving")


class Watch(Protocol):
    """Is told, in the engine's thread, what happens."""

    def read(self, tokens: int) -> None:
        """So many tokens of prompts were read."""

    def said(self, job: Generation) -> None:
        """A token of an answer was said."""

    def kept(self, cache: MemoryCache) -> None:
        """An answer or a reading ended with this in its cache."""

    def over(self, job: Job, outcome: str) -> None:
        """A job is over: "answered", "read" or "cancelled"."""

    def failed(self, job: Job, error: ServingError, cause: Exception | None) -> None:
        """A job is over, and its client is told of an error; the cause where it is not the client's own."""


class LogOnly:
    """Tells the log of what went wrong, and nobody else of anything."""

    def read(self, tokens: int) -> None:
        """See `Watch`."""

    def said(self, job: Generation) -> None:
        """See `Watch`."""

    def kept(self, cache: MemoryCache) -> None:
        """See `Watch`."""

    def over(self, job: Job, outcome: str) -> None:
        """See `Watch`."""

    def failed(self, job: Job, error: ServingError, cause: Exception | None) -> None:
        """See `Watch`."""
        if error.status >= 500 and cause is not None:
            log.error("%s failed: %s", describe(job), error.message, exc_info=cause)
