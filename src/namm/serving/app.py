"""The application: OpenAI's API, documents, metrics and a page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from namm.policies.base import Policy
from namm.serving.answers import Answers
from namm.serving.documents import Documents
from namm.serving.engine import Engine
from namm.serving.errors import ServingError
from namm.serving.following import ClientGone
from namm.serving.guard import Guard
from namm.serving.library import Library
from namm.serving.metrics import Metrics
from namm.serving.prefill import rehearsing
from namm.serving.prompts import Prompts
from namm.serving.schemas import ErrorBody, Health, ModelCard, ModelList
from namm.serving.settings import Settings
from namm.support.version import VERSION
from namm.tasks.encode import to_repeat

SNAPSHOT = 3.0  # seconds that metrics wait for the end of a turn; who asks has 5 (`front.PATIENCE`) or 10 (Prometheus)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
GONE = 499  # nobody reads it


def create_app(
    model: Any,
    tokenizer: Any,
    policy: Policy,
    documents: Documents,
    settings: Settings,
    *,
    name: str,
    bits: int | None = None,
) -> FastAPI:
    """An application that serves one model; its engine, `app.state.engine`, ends with its lifespan.

    Args:
        name: by which requests name the model.

    Raises:
        ValueError: if documents are to be rehearsed, and the policy does not look at that.
    """
    rehearses = rehearsing(policy) is not None
    if settings.rehearse and not rehearses:
        raise ValueError(f"policy {policy.name!r} does not look at a rehearsal: serve without one")
    metrics = Metrics()
    engine = Engine(model, policy, documents, settings, bits, metrics)
    prompts = Prompts.of(model, tokenizer, settings.tokens)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="namm",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # a page that fetches scripts from elsewhere
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "An error."}},
    )
    app.state.engine, app.state.documents = engine, documents
    app.include_router(Answers(engine, prompts, name, ends_of(model, tokenizer)).router())
    app.include_router(Library(engine, documents, prompts, to_repeat(tokenizer) if rehearses else None).router())
    _add_models(app, name)
    _add_state(app, engine, metrics)
    add_errors(app)
    app.add_middleware(Guard, settings=settings, draining=lambda: engine.draining, answered=metrics.answered)
    return app


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as `generate` knows them."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return frozenset(() if found is None else [found] if isinstance(found, int) else found)


def _add_models(app: FastAPI, name: str) -> None:
    card = {"id": name, "object": "model", "created": 0, "owned_by": "namm"}

    @app.get("/v1/models", response_model=ModelList)
    async def models() -> Any:
        """The model that is served."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}", response_model=ModelCard)
    async def model(model: str) -> Any:
        """The same, by its name."""
        if model != name:
            raise ServingError(404, f"there is no model {model[:80]!r}: this is {name!r}", "model_not_found", "model")
        return card


def _add_state(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    page = resources.files("namm.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_it() -> Any:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/health", response_model=Health)
    async def health() -> Any:
        """Whether requests are taken."""
        taken = engine.alive and not engine.draining
        return JSONResponse({"status": "ok" if taken else "stopping"}, 200 if taken else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Any:
        """For Prometheus."""
        if engine.alive:
            try:
                snapshot = await asyncio.wait_for(asyncio.wrap_future(engine.ask(engine.snapshot)), SNAPSHOT)
                metrics.show(snapshot)
            except TimeoutError:  # a long turn: what was told before stands
                pass
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def add_errors(app: FastAPI) -> None:
    """Have errors answered in the shape that clients of OpenAI's API read."""

    @app.exception_handler(ServingError)
    async def refused(request: Request, error: ServingError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> JSONResponse:
        return JSONResponse(ServingError(GONE, "the client has gone", "gone").body(), GONE)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        found = ServingError(400, f"{where or 'the body'}: {first['msg']}", "invalid_request", where or None)
        return JSONResponse(found.body(), found.status)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        found = ServingError(error.status_code, str(error.detail), "http")
        return JSONResponse(found.body(), found.status, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        found = ServingError(500, f"this is a bug in namm ({type(error).__name__})", "bug")
        return JSONResponse(found.body(), found.status)
