"""What the engine is asked to do, and what it tells on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from namm.cache import MemoryCache
from namm.serving.documents import Document
from namm.serving.errors import ServingError
from namm.serving.sampling import Sampling
from namm.serving.text import Stops, TextStream


@dataclass(frozen=True)
class Piece:
    """Text that comes next."""

    text: str


@dataclass(frozen=True)
class Ended:
    """An answer is whole.

    Attributes:
        reason: "stop" or "length".
        prompt_tokens: with those of the document.
        completion_tokens: with the one that ended it.
        cached_tokens: of the prompt, those of the document, which were not read again.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Read:
    """A document was read and is on disk."""

    document: Document


@dataclass(frozen=True)
class Failed:
    """Nothing more comes."""

    error: ServingError


Event = Piece | Ended | Read | Failed


@dataclass(eq=False, kw_only=True)
class Job:
    """Tokens to be read, and what is known on the way.

    Attributes:
        ids: ``[1, tokens]`` int64, at least one.
        tell: called in the engine's thread.
        document: id of the text that comes before, or None.
        cache: from when it is admitted until it is over.
        read: how many of `ids` are in the cache.
        cancelled: nobody waits for it any more; may be set in any thread.
        arrived: `time.monotonic` when it came.
        latest: when its last token came.
    """

    ids: Tensor
    tell: Callable[[Event], None]
    document: str | None = None
    cache: MemoryCache | None = None
    read: int = 0
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    latest: float = field(default_factory=time.monotonic)


@dataclass(eq=False, kw_only=True)
class Reading(Job):
    """A text that is to become a document.

    Attributes:
        name: see `Document`; so is `chat`.
        instruction: for a rehearsal, ``[tokens]``, see `MemoryCache.rehearse`; None: without one.
        passes: of the rehearsal, those that are still to come.
    """

    name: str
    chat: bool
    instruction: Tensor | None = None
    passes: Iterator[tuple[Tensor, int]] | None = None


@dataclass(eq=False, kw_only=True)
class Generation(Job):
    """A prompt that is to be answered.

    Attributes:
        new_tokens: at most.
        sampling: how tokens are chosen.
        ends: tokens that end an answer.
        stops: sequences that end it.
        stream: its text.
        said: its tokens.
        before: tokens of the document.
    """

    new_tokens: int
    sampling: Sampling
    ends: Collection[int]
    stops: Stops
    stream: TextStream
    said: list[int] = field(default_factory=list)
    before: int = 0

    def say(self, token: int) -> bool:
        """Take the next token of the answer and tell of it; whether that was the last."""
        self.said.append(token)
        over = token in self.ends
        text = "" if over else self.stops.push(self.stream.push(token))
        full = len(self.said) >= self.new_tokens
        if (over or full) and not self.stops.hit:
            text += self.stops.push(self.stream.end())
            text += self.stops.end()
        if text:
            self.tell(Piece(text))
        stopped = over or self.stops.hit
        if stopped or full:
            prompt = self.before + self.ids.shape[1]
            self.tell(Ended("stop" if stopped else "length", prompt, len(self.said), self.before))
        return stopped or full


def describe(job: Job) -> dict[str, Any]:
    """For the log of a failure."""
    return {"kind": type(job).__name__.lower(), "tokens": job.ids.shape[1], "read": job.read, "document": job.document}
