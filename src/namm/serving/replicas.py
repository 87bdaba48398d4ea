"""The server as a deployment of Ray Serve: replicas of the application, and a front that hands requests on to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

from namm.models import load_model
from namm.policies.base import Policy
from namm.serving.app import create_app
from namm.serving.errors import ServingError
from namm.serving.forwarded import Forwarded, play
from namm.serving.front import PATIENCE, Front, ReplicaDied, front_app
from namm.serving.settings import Settings
from namm.serving.shared import SharedDocuments

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
AT_ONCE = 100_000  # requests of one front, whose replicas know their own bounds


@dataclass(frozen=True)
class Recipe:
    """What each replica makes its server of.

    Attributes:
        model: see `load_model`; so are `dtype` and `options`.
        folder: of documents, which all replicas see under this path.
        policy: of new caches.
        name: by which requests name the model.
        settings: limits of each replica.
        dtype: of weights and caches.
        options: of `load_model`, such as a device.
        bits: that caches hold, see `MemoryCache`.
    """

    model: str
    folder: Path
    policy: Policy
    name: str
    settings: Settings = field(default_factory=Settings)
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = None


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each may take of its machine.

    Attributes:
        replicas: from the start, and at least.
        most: at most, as many as are needed; None: always as many as at the start.
        ongoing: requests at once for each replica, beyond which more replicas are started; None: as many as one
            serves at once.
        cpus: of each; it computes with as many threads.
        gpus: of each.
    """

    replicas: int = 2
    most: int | None = None
    ongoing: int | None = None
    cpus: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        for name in ("replicas", "cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.most is not None and self.most < self.replicas:
            raise ValueError(f"at most {self.most} replicas are fewer than the {self.replicas} to begin with")
        if self.ongoing is not None and self.most is None:
            raise ValueError("requests at once for each replica mean something only with a highest number of replicas")

    def options(self, settings: Settings) -> dict[str, Any]:
        """Of a deployment of Ray Serve."""
        if self.most is None:
            return {"num_replicas": self.replicas}
        aim = self.ongoing or settings.batch
        scaling = AutoscalingConfig(
            min_replicas=self.replicas, max_replicas=self.most, target_ongoing_requests=float(aim)
        )
        return {"autoscaling_config": scaling}


class Replica:
    """One server, in a process of its own."""

    def __init__(self, recipe: Recipe) -> None:
        model, tokenizer = load_model(recipe.model, dtype=recipe.dtype, **recipe.options)
        documents = SharedDocuments(recipe.folder, model, tokenizer)
        told = recipe.policy, documents, recipe.settings
        self.app = create_app(model, tokenizer, *told, name=recipe.name, bits=recipe.bits)
        self.engine = self.app.state.engine

    async def answer(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """A request, message by message."""
        async with aclosing(play(self.app, request)) as messages:
            async for message in messages:
                yield message

    async def whole(self, request: Forwarded) -> tuple[str, str]:
        """The name of the replica, and the body of its answer."""
        parts = [message.get("body", b"") async for message in play(self.app, request)]
        return serve.get_replica_context().replica_id.unique_id, b"".join(parts).decode()

    def forget(self, document: str) -> None:
        """Free the memory of a deleted document as soon as nobody uses it."""
        self.engine.ask(lambda: self.engine.scheduler.memory.drop(document))

    def stop(self) -> None:
        """Take nothing new, and tell the clients of what runs."""
        self.engine.draining = True
        self.engine.ask(self.engine.scheduler.stop)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises."""
        if not self.engine.alive:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


class RayReplicas:
    """`Replicas` of a deployment.

    Args:
        handle: of it.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """See `Replicas`."""
        belongs: dict[str, Any] = {} if request.document is None else {"session_id": request.document}
        answer: Any = self.handle.options(method_name="answer", stream=True, **belongs).remote(request)
        try:
            async for message in answer:
                yield message
        except (asyncio.CancelledError, GeneratorExit):  # nobody waits for the rest
            answer.cancel()
            raise
        except ActorDiedError:
            raise ReplicaDied from None
        except BackPressureError:
            error = "all replicas have as many requests as they take: try again later"
            raise ServingError(429, error, "queue_full", retry_after=10) from None
        except (RayError, RayServeException) as error:
            why = f"the replica can't be reached ({type(error).__name__}): try again later"
            raise ServingError(503, why, "no_replica", retry_after=10) from None

    async def ask_all(self, request: Forwarded) -> Mapping[str, str]:
        """See `Replicas`."""
        return dict(found for found in await self._all("whole", request) if isinstance(found, tuple))

    async def forget(self, document: str) -> None:
        """See `Replicas`."""
        await self._all("forget", document)

    async def stop(self) -> None:
        """See `Replicas`."""
        await self._all("stop")

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What all say in good time, errors among it."""
        with suppress(TimeoutError):
            asked = self.handle.broadcast(method, *arguments)
            found: list[Any] = await asked.results_async(timeout_s=PATIENCE, return_exceptions=True)
            return found
        return []


@serve.ingress()
class FrontReplica:
    """A front, in a process of its own."""

    def __init__(self, replicas: DeploymentHandle, settings: Settings) -> None:
        self.front, self.settings = Front(RayReplicas(replicas)), settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        return front_app(self.front, self.settings)

    async def drain(self, patience: float) -> None:
        """See `Front`."""
        await self.front.drain(patience)


def application(recipe: Recipe, scale: Scale) -> serve.Application:
    """What `ray.serve.run` takes, or a file of `serve deploy` names by a function that calls this."""
    settings = recipe.settings
    replica = serve.deployment(
        max_ongoing_requests=settings.batch + settings.queue,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.patience,
        max_constructor_retry_count=1,  # what fails once, such as a model that is not there, fails again
        request_router_config={"request_router_class": ROUTER},
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        **scale.options(settings),
    )(Replica)
    front = serve.deployment(max_ongoing_requests=AT_ONCE, ray_actor_options={"num_cpus": 0})(FrontReplica)
    return front.bind(replica.bind(recipe), settings)
