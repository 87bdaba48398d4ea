"""Starts the server's replicas on Ray, and ends them without losing what was accepted."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from namm.serving.replicas import Recipe, Scale, application
from namm.serving.run import listen, url_of

NAME = "namm"
LOCAL = "local"
QUIET = {
    "RAY_worker_niceness": "0",  # else replicas give way to whatever else runs
    "RAY_USAGE_STATS_ENABLED": "0",
}
FAILED = re.compile(r"^[\w.]*(?:Error|Exception): (.+)$", re.MULTILINE)


def run(recipe: Recipe, scale: Scale, host: str, port: int, address: str, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes; a second one ends the process at once.

    Args:
        port: 0: any that is free.
        address: of a Ray cluster; "local" starts one that ends with this process.
        ready: is called with the address of the server.

    Raises:
        ValueError: if the address can't be had, or a replica can't start.
    """
    with listen(host, port) as bound:
        url, port = url_of(host, bound), bound.getsockname()[1]
    if address == LOCAL:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    room = scale.cpus * (scale.most or scale.replicas) if address == LOCAL else None
    ray.init(address, num_cpus=room, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        location = "HeadOnly" if address == LOCAL else "EveryNode"
        try:
            serve.start(proxy_location=location, http_options=HTTPOptions(host=host, port=port))
            serve.run(application(recipe, scale), name=NAME, route_prefix="/")
        except (RayError, RuntimeError) as error:
            raise ValueError(f"a replica can't start: {_reason(error)}") from None
        ended = _wait_for_signals()
        ready(url)
        while not ended.wait(1):
            pass
        with suppress(RayError, RayServeException):  # a front that dies has nobody to wait for
            serve.get_app_handle(NAME).drain.remote(recipe.settings.patience).result()
        serve.delete(NAME)  # what is of others in the cluster stays
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """The last error that a replica's log names."""
    messages = []
    with suppress(RayError, RuntimeError):
        told = serve.status().applications.get(NAME)
        messages = [] if told is None else [deployment.message for deployment in told.deployments.values()]
    found = FAILED.findall("\n".join(messages))
    return found[-1] if found else str(error)


def _wait_for_signals() -> threading.Event:
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ended
