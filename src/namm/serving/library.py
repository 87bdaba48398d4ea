"""The routes of documents."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from namm.serving.documents import Document, Documents
from namm.serving.engine import Engine
from namm.serving.errors import ServingError, unknown_document
from namm.serving.following import Mailbox, follow
from namm.serving.jobs import Read, Reading
from namm.serving.prefill import repeated
from namm.serving.prompts import Prompts
from namm.serving.schemas import Deleted, DocumentCard, DocumentList, DocumentRequest, DocumentTokens
from namm.serving.text import TextStream


@dataclass(frozen=True)
class Library:
    """Reads documents, lists them, shows what was kept of them, and deletes them.

    Attributes:
        engine: that reads.
        documents: on disk.
        prompts: of its model.
        instruction: for a rehearsal, ``[tokens]``; None: the server's policy does not look at one.
    """

    engine: Engine
    documents: Documents
    prompts: Prompts
    instruction: Tensor | None

    def router(self) -> APIRouter:
        """/v1/documents."""
        routes = APIRouter(prefix="/v1/documents")

        @routes.post("", response_model=DocumentCard, status_code=201)
        async def read(asked: DocumentRequest, request: Request) -> Any:
            """Read a text once; answered when what is remembered of it is on disk."""
            if len(self.documents.known) >= self.engine.settings.documents:
                raise ServingError(409, "there are as many documents as may be: delete one", "too_many_documents")
            instruction = self._instruction(asked)
            repeats = 0 if instruction is None else repeated(self.engine.scheduler.policy, instruction)
            ids, chat = await run_in_threadpool(self.prompts.document, asked.text, asked.raw, repeats)
            mailbox = Mailbox()
            job = Reading(ids=ids, tell=mailbox.tell, name=asked.name, chat=chat, instruction=instruction)
            async with aclosing(follow(self.engine, job, mailbox, request)) as events:
                async for event in events:
                    if isinstance(event, Read):
                        return card(event.document)
            raise ServingError(500, "the reading has no end", "bug")

        @routes.get("", response_model=DocumentList)
        async def every() -> Any:
            """All documents, the oldest first."""
            return {"object": "list", "data": [card(document) for document in self.documents.known.values()]}

        @routes.get("/{document}", response_model=DocumentCard)
        async def one(document: str) -> Any:
            """One document."""
            return card(self._known(document))

        @routes.delete("/{document}", response_model=Deleted)
        async def delete(document: str) -> Any:
            """Delete a document; answers that are being given from it go on."""
            self._known(document)
            await asyncio.wrap_future(self.engine.ask(lambda: self.engine.scheduler.delete(document)))
            return {"id": document, "object": "document", "deleted": True}

        @routes.get("/{document}/tokens", response_model=DocumentTokens)
        async def tokens(document: str) -> Any:
            """The document's tokens, and how many heads hold each."""
            return await run_in_threadpool(self._tokens, self._known(document).id)

        return routes

    def _instruction(self, asked: DocumentRequest) -> Tensor | None:
        """For a rehearsal, if there is to be one."""
        if not (self.engine.settings.rehearse if asked.rehearse is None else asked.rehearse):
            return None
        if self.instruction is None:
            raise ServingError(
                409, "the server's policy does not look at a rehearsal: read without", "no_rehearsal", "rehearse"
            )
        return self.instruction

    def _known(self, document: str) -> Document:
        found = self.documents.known.get(document)
        if found is None:
            raise unknown_document(document)
        return found

    def _tokens(self, document: str) -> dict[str, Any]:
        try:
            ids, held, heads = self.documents.held(document)
        except (OSError, KeyError):  # deleted meanwhile
            raise unknown_document(document) from None
        stream = TextStream(self.prompts.tokenizer, special=True)
        texts = [stream.push(token) for token in ids.tolist()]
        texts[-1] += stream.end()
        return {"tokens": texts, "held": held.tolist(), "heads": heads}


def card(document: Document) -> dict[str, Any]:
    """A document as it is told of."""
    known = asdict(document)
    del known["undecided"]
    return known | {"object": "document"}
