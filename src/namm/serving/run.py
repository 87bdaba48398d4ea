"""The server's process: it starts, and ends when it is told to without losing what was accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from namm.serving.engine import Engine

CLOSING = 5  # seconds that connections have to close when nothing is computed for them any more


class Server(uvicorn.Server):
    """Lets what runs finish, for as long as the settings say, before it ends; at a second signal it ends at once.

    Meanwhile new requests are answered with 503.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal, in the main thread."""
        if self.engine.draining or self._loop is None:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        self.engine.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        if not await asyncio.to_thread(self.engine.drain, self.engine.settings.patience):
            self.engine.ask(self.engine.scheduler.stop)  # whose clients are told
        self.should_exit = True


def run(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        port: 0: any that is free.
        ready: is called with the address.

    Raises:
        ValueError: if the address can't be had.
    """
    engine: Engine = app.state.engine
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=CLOSING)
    try:
        bound = listen(host, port, config.backlog)
    except ValueError:
        engine.close()
        raise
    with bound:
        ready(url_of(host, bound))
        Server(config, engine).run(sockets=[bound])


def listen(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A socket that is bound to an address.

    Raises:
        ValueError: if the address can't be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"can't listen at {host}:{port} ({reason}): name another --host or --port") from None


def url_of(host: str, bound: socket.socket) -> str:
    """Of a socket from `listen`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
