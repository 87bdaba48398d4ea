"""Completions and chats: from a request to an answer, whole or in a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from namm.serving.documents import Document
from namm.serving.engine import Engine
from namm.serving.errors import ServingError
from namm.serving.following import ClientGone, Mailbox, follow, whole
from namm.serving.jobs import Ended, Event, Generation, Piece
from namm.serving.prompts import Prompts
from namm.serving.sampling import Sampling
from namm.serving.schemas import Asked, ChatCompletion, ChatRequest, Completion, CompletionRequest
from namm.serving.text import Stops, TextStream

JSON = dict[str, Any]
STREAMS: dict[int | str, JSON] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer."}
}


@dataclass(frozen=True)
class Shape:
    """What the two ways of asking name differently.

    Attributes:
        prefix: of ids.
        whole: object of an answer.
        part: object of a piece.
        choice: of a text, in a whole answer.
        delta: of a text, in a piece; None: nothing comes.
        opening: of a stream.
    """

    prefix: str
    whole: str
    part: str
    choice: Callable[[str], JSON]
    delta: Callable[[str | None], JSON]
    opening: JSON | None


COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text or ""}, None
)
CHAT = Shape(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {} if text is None else {"content": text}},
    {"delta": {"role": "assistant", "content": ""}},
)


@dataclass(frozen=True)
class Answers:
    """The routes.

    Attributes:
        engine: that computes.
        prompts: of its model.
        model: its name.
        ends: tokens that end an answer.
    """

    engine: Engine
    prompts: Prompts
    model: str
    ends: frozenset[int]

    def router(self) -> APIRouter:
        """POST /v1/completions and /v1/chat/completions."""
        routes = APIRouter()

        @routes.post("/v1/completions", response_model=Completion, responses=STREAMS)
        async def complete(asked: CompletionRequest, request: Request) -> Any:
            """Go on with a text."""
            document = self._known(asked)
            ids = await run_in_threadpool(self.prompts.completion, asked, document)
            return await self._answer(COMPLETION, asked, ids, document, request)

        @routes.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMS)
        async def chat(asked: ChatRequest, request: Request) -> Any:
            """Take the assistant's turn in a chat."""
            document = self._known(asked)
            ids = await run_in_threadpool(self.prompts.chat, asked, document)
            return await self._answer(CHAT, asked, ids, document, request)

        return routes

    def _known(self, asked: Asked) -> Document | None:
        """The document that is named; ServingError if that or the model is not there."""
        if asked.model != self.model:
            raise ServingError(
                404, f"there is no model {asked.model[:80]!r}: this is {self.model!r}", "model_not_found", "model"
            )
        return None if asked.document is None else self.engine.scheduler.admission.document(asked.document)

    async def _answer(
        self, shape: Shape, asked: Asked, ids: Tensor, document: Document | None, request: Request
    ) -> Any:
        mailbox = Mailbox()
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        job = Generation(
            ids=ids,
            tell=mailbox.tell,
            document=asked.document,
            new_tokens=self.prompts.new_tokens(asked, ids, document),
            sampling=Sampling(
                1.0 if asked.temperature is None else asked.temperature,
                1.0 if asked.top_p is None else asked.top_p,
                asked.seed,
            ),
            ends=self.ends,
            stops=Stops([stop for stop in stops if stop]),
            stream=TextStream(self.prompts.tokenizer),
        )
        head = {"id": f"{shape.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.model}
        events = follow(self.engine, job, mailbox, request)
        if not asked.stream:
            text, ended = await whole(events)
            choice = {"index": 0, "logprobs": None, "finish_reason": ended.reason} | shape.choice(text)
            return head | {"object": shape.whole, "choices": [choice], "usage": usage(ended)}
        first = await anext(events)  # what fails before this is an error of HTTP
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        lines = stream(shape, head | {"object": shape.part}, first, events, with_usage)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def stream(
    shape: Shape, head: JSON, first: Event, events: AsyncGenerator[Event, None], with_usage: bool
) -> AsyncIterator[str]:
    """Lines of server-sent events."""

    def line(delta: JSON, reason: str | None = None) -> str:
        choice = {"index": 0, "logprobs": None, "finish_reason": reason} | delta
        return _line(head | {"choices": [choice]} | ({"usage": None} if with_usage else {}))

    if shape.opening is not None:
        yield line(shape.opening)
    try:
        event: Event | None = first
        while event is not None:
            if isinstance(event, Piece):
                yield line(shape.delta(event.text))
            elif isinstance(event, Ended):
                yield line(shape.delta(None), event.reason)
                if with_usage:
                    yield _line(head | {"choices": [], "usage": usage(event)})
            event = await anext(events, None)
        yield "data: [DONE]\n\n"
    except ServingError as error:
        yield _line(error.body())
    except ClientGone:
        return
    finally:
        await events.aclose()


def usage(ended: Ended) -> JSON:
    """Tokens of a request."""
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": ended.prompt_tokens + ended.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": ended.cached_tokens},
    }


def _line(value: JSON) -> str:
    return f"data: {json.dumps(value)}\n\n"
