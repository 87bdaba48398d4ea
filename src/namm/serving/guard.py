"""What every request passes before it is looked at: keys, the size of its body, and whether the server is stopping."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from namm.serving.errors import ServingError, stopping
from namm.serving.settings import Settings, in_words

OPEN = "/", "/health"  # without a key
PATIENCE = 8  # times the limit: so much of a body is read on before it is refused, so that its sender hears of it


class Guard:
    """An ASGI middleware.

    Args:
        draining: whether no new work is taken.
        answered: is told the path and status of every answer.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, draining: Callable[[], bool], answered: Callable[[str, int], None]
    ) -> None:
        self.app, self.settings, self.draining, self.answered = app, settings, draining, answered
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self.answered(getattr(route, "path", "other"), message["status"])
            await send(message)

        try:
            self._check_key(scope)
            if self.draining() and scope["method"] == "POST":
                raise stopping()
            body = await self._body(scope, receive)
        except ServingError as error:
            await JSONResponse(error.body(), error.status, error.headers())(scope, receive, told)
            return
        if body is not None:  # else the client has gone
            await self.app(scope, _again(body, receive), told)

    def _check_key(self, scope: Scope) -> None:
        if not self._keys or scope["path"] in OPEN:
            return
        sent = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = sent.partition(b" ")
        # all are compared, so that the time says nothing
        same = [hmac.compare_digest(key.strip(), own) for own in self._keys]
        if kind.lower() != b"bearer" or not any(same):
            raise ServingError(401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it; None if the client goes."""
        parts, size, limit = [], 0, self.settings.body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            if size > PATIENCE * limit or not message.get("more_body", False):
                break
        if size > limit:
            raise ServingError(
                413, f"the request is larger than {in_words(limit)}, which is the most that is taken", "body_too_large"
            )
        return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one piece, and then what else comes."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def found() -> Message:
        return first.pop() if first else await receive()

    return found
