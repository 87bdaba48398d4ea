"""A request on its way to an application in another process, and the answer on its way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from namm.serving.library import NEW_ID

log = logging.getLogger("namm.serving")


@dataclass(frozen=True)
class Forwarded:
    """A request as plain data.

    Attributes:
        method: of HTTP.
        path: decoded.
        query: as it came.
        headers: names in lower case.
        body: all of it.
        document: that it is about, if it is about one.
        new: that document is yet to be read.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    document: str | None = None
    new: bool = False

    @classmethod
    def of(cls, scope: Scope, body: bytes, document: str | None, new: bool) -> Forwarded:
        """The request of an ASGI scope."""
        headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
        return cls(scope["method"], scope["path"], scope["query_string"], headers, body, document, new)

    def scope(self) -> dict[str, Any]:
        """As ASGI has it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": None,
            "server": None,
            NEW_ID: self.document if self.new else None,
        }


async def play(app: ASGIApp, request: Forwarded) -> AsyncGenerator[Message, None]:
    """What an application answers, message by message; when nobody iterates any more, it hears that the client went."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    body = [request.body]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(app(request.scope(), receive, messages.put))
    running.add_done_callback(lambda _: messages.put_nowait(None))
    running.add_done_callback(_tell)
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        gone.set()


def _tell(running: asyncio.Future[None]) -> None:
    """Of a bug, of which the client has been told by the application."""
    if not running.cancelled() and (error := running.exception()) is not None:
        log.error("a request failed", exc_info=error)
