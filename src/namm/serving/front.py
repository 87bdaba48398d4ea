"""What stands before several replicas: it hands every request on to one, and its answer back as it comes.

A request that names a document goes to the replica that the document's id belongs to, and a text that is to be read
gets its id here, so that it is read where it will be asked. A replica that dies over a request is no fault of the
client's: another one answers, or, when a part of the answer is out, the stream ends with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from namm.serving.app import add_errors
from namm.serving.documents import ID, new_id
from namm.serving.errors import ServingError
from namm.serving.forwarded import Forwarded
from namm.serving.gathered import gathered
from namm.serving.guard import Guard
from namm.serving.settings import Settings

TRIES = 3  # replicas that may die over one request before its client is told
PATIENCE = 5.0  # seconds for what is asked of replicas beside requests
PAUSE = 0.05
NAMED = re.compile(rf"/v1/documents/({ID.pattern})(/tokens)?")


class ReplicaDied(Exception):
    """The process that was asked has ended, so it writes nothing any more."""


class Replicas(Protocol):
    """Those who answer."""

    def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """What the replica of the request's document, or any, answers.

        Raises:
            ReplicaDied: before its end. ServingError: if none can be asked.
        """

    async def ask_all(self, request: Forwarded) -> Mapping[str, str]:
        """What every replica that lives answers, by its name."""

    async def forget(self, document: str) -> None:
        """Have every replica free the memory that it holds a deleted document in."""

    async def stop(self) -> None:
        """Have every replica end what it answers, with an error."""


class Front:
    """An ASGI application.

    Args:
        replicas: that answer.

    Attributes:
        draining: nothing new is taken.
        running: requests that are not answered yet.
    """

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.draining = False
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]  # the guard gives it in one piece
        request = await run_in_threadpool(addressed, scope, body)
        if request.path == "/metrics" and request.method == "GET":
            page = gathered(await self.replicas.ask_all(request))
            await Response(page, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
            return
        if request.path == "/health" and self.draining:  # of which the replicas know nothing
            await JSONResponse({"status": "stopping"}, 503)(scope, receive, send)
            return
        self.running += 1
        try:
            await self._unless_gone(self._answer(request, Relay(send)), receive)
        finally:
            self.running -= 1

    async def drain(self, patience: float) -> None:
        """Take nothing new, and wait until all is answered; after so many seconds the rest is given up."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.running:
                    await asyncio.sleep(PAUSE)
        if self.running:
            await self.replicas.stop()

    async def _unless_gone(self, answer: Coroutine[Any, Any, None], receive: Receive) -> None:
        """Answer, but leave off when the client goes."""
        answering, going = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            answering.cancel()
            going.cancel()

    async def _answer(self, request: Forwarded, relay: Relay) -> None:
        limit = PATIENCE if request.path == "/health" else None
        try:
            async with asyncio.timeout(limit):
                await self._from_one(request, relay)
        except TimeoutError:
            raise ServingError(503, "no replica answers: try again later", "no_replica", retry_after=10) from None
        if request.method == "DELETE" and request.document is not None and relay.status == 200:
            await self.replicas.forget(request.document)

    async def _from_one(self, request: Forwarded, relay: Relay) -> None:
        for _ in range(TRIES):
            try:
                async with aclosing(self.replicas.ask(request)) as messages:
                    async for message in messages:
                        await relay.pass_on(message)
                return
            except ReplicaDied:
                if relay.began:
                    break
            except ServingError as error:
                await relay.fail(error)
                return
        died = "the replica that was answering has died: ask again"
        await relay.fail(ServingError(503, died, "replica_died", retry_after=1))


class Relay:
    """An answer on its way to a client, who hears nothing of it before there is a part to be read.

    Attributes:
        began: something was sent.
        status: of HTTP; None: not known yet.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._start = send, {}  # type: tuple[Send, Message]
        self.began = False

    @property
    def status(self) -> int | None:
        return self._start.get("status")

    async def pass_on(self, message: Message) -> None:
        """A message of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if not self.began:
            self.began = True
            await self._send(self._start)
        await self._send(message)

    async def fail(self, error: ServingError) -> None:
        """Tell of an error: within a stream as its last event; else it is raised, for what answers errors."""
        if not self.began or (b"text/event-stream" not in dict(self._start["headers"]).get(b"content-type", b"")):
            raise error
        line = f"data: {json.dumps(error.body())}\n\n".encode()
        await self._send({"type": "http.response.body", "body": line, "more_body": False})


def addressed(scope: Scope, body: bytes) -> Forwarded:
    """A request, and the document that it is about."""
    path, method = scope["path"], scope["method"]
    if path == "/v1/documents" and method == "POST":
        return Forwarded.of(scope, body, new_id(), True)
    if found := NAMED.fullmatch(path):
        return Forwarded.of(scope, body, found[1], False)
    return Forwarded.of(scope, body, _named(body) if method == "POST" else None, False)


def _named(body: bytes) -> str | None:
    """The document that a body of JSON names; what else is wrong with it, a replica says."""
    if b'"document"' not in body:
        return None
    try:
        found = json.loads(body)["document"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) and ID.fullmatch(found) else None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def front_app(front: Front, settings: Settings) -> FastAPI:
    """The application around a front: keys and the size of bodies are looked at before anything is handed on."""
    app = FastAPI(openapi_url=None, routes=[Route("/{path:path}", front)])
    add_errors(app)
    app.add_middleware(Guard, settings=settings, draining=lambda: front.draining, answered=lambda *_: None)
    return app
