"""A job as asyncio sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request

from namm.serving.engine import Engine
from namm.serving.errors import ServingError
from namm.serving.jobs import Ended, Event, Failed, Job, Piece


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Mailbox:
    """Where an engine's thread leaves what asyncio waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def tell(self, event: Event | None) -> None:
        """From any thread; None: nobody waits any more."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self) -> Event | None:
        """What comes next."""
        return await self._events.get()


async def follow(engine: Engine, job: Job, mailbox: Mailbox, request: Request) -> AsyncGenerator[Event, None]:
    """What is told of a job, up to its end; it is cancelled when the client goes, or nobody iterates any more.

    Raises:
        ClientGone: if it did. ServingError: if the job is not taken, or fails.
    """
    engine.submit(job)
    watching = asyncio.ensure_future(_gone(request, mailbox))
    over = False
    try:
        while not over:
            event = await mailbox.get()
            if event is None:
                raise ClientGone
            over = not isinstance(event, Piece)
            if isinstance(event, Failed):
                raise event.error
            yield event
    finally:
        watching.cancel()
        if not over:
            engine.cancel(job)


async def whole(events: AsyncIterator[Event]) -> tuple[str, Ended]:
    """The text of an answer, and how it ended."""
    pieces = []
    async for event in events:
        if isinstance(event, Piece):
            pieces.append(event.text)
        elif isinstance(event, Ended):
            return "".join(pieces), event
    raise ServingError(500, "the answer has no end", "bug")


async def _gone(request: Request, mailbox: Mailbox) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    mailbox.tell(None)
