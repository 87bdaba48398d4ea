"""An engine, as tests talk to it, and what single runs say."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest
import torch
from torch import Tensor

from namm import NAMM, MemoryCache, NAMMConfig
from namm.policies import NAMMPolicy
from namm.serving.engine import Engine, Snapshot
from namm.serving.jobs import Ended, Event, Failed, Generation, Piece, Read, Reading
from namm.serving.sampling import Sampling
from namm.serving.text import Stops, TextStream

KEPT = NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True, key_value=True)), kept=0.5)
PATIENCE = 60  # seconds, after which something hangs


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(3, 250, (1, count), generator=torch.Generator().manual_seed(seed))


@dataclass
class Answer:
    """What is told of one job."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    job: Any = None

    def end(self) -> Event:
        """Its last event."""
        while isinstance(event := self.events.get(timeout=PATIENCE), Piece):
            pass
        return event


@dataclass
class Served:
    engine: Engine
    model: Any
    tokenizer: Any

    def held_and_reserved(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        """A list that gets, after every turn, the bytes that each job holds by itself and those reserved for it."""
        seen, scheduler = list[tuple[int, int]](), self.engine.scheduler
        turn = scheduler.turn

        def watched() -> None:
            turn()
            for job, reserved in scheduler.memory.jobs.items():
                if job.cache is not None:
                    stats = job.cache.stats()
                    seen.append((stats.held_bytes - stats.shared_bytes + stats.other_bytes, reserved))

        monkeypatch.setattr(scheduler, "turn", watched)
        return seen

    def generate(self, ids: Tensor, new_tokens: int, **options: Any) -> Answer:
        answer = Answer()
        sampling = options.pop("sampling", Sampling(0.0))
        told = {"ends": (), "stops": Stops(()), "stream": TextStream(self.tokenizer)} | options
        answer.job = Generation(ids=ids, tell=answer.events.put, new_tokens=new_tokens, sampling=sampling, **told)
        self.engine.submit(answer.job)
        return answer

    def read(self, ids: Tensor, name: str = "", instruction: Tensor | None = None) -> Answer:
        answer = Answer()
        answer.job = Reading(ids=ids, tell=answer.events.put, name=name, chat=False, instruction=instruction)
        self.engine.submit(answer.job)
        return answer

    def document(self, ids: Tensor) -> str:
        read = self.read(ids).end()
        assert isinstance(read, Read), read
        return read.document.id

    def said(self, answer: Answer) -> list[int]:
        ended = answer.end()
        assert isinstance(ended, Ended), ended
        assert ended.completion_tokens == len(answer.job.said)
        return answer.job.said

    def refusal(self, answer: Answer) -> Any:
        failed = answer.end()
        assert isinstance(failed, Failed), failed
        return failed.error

    def snapshot(self) -> Snapshot:
        return self.engine.ask(self.engine.snapshot).result(PATIENCE)

    def held(self) -> int:
        return self.snapshot().held

    def reserved(self) -> int:
        return self.snapshot().reserved


@dataclass
class Address:
    """A server of its own, over HTTP."""

    url: str
    app: Any
    model: Any
    tokenizer: Any

    @property
    def engine(self) -> Engine:
        return self.app.state.engine

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE, **options)

    def call(self, method: str, path: str, **options: Any) -> Any:
        return httpx2.request(method, self.url + path, timeout=PATIENCE, **options)

    def read(self, text: str, **options: Any) -> str:
        answer = self.call("POST", "/v1/documents", json={"text": text} | options)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def alone(self, prompt: str, new_tokens: int, document: str | None = None) -> str:
        """The text of a single run of a completion."""
        ids, text = (None if t is None else torch.tensor([list(t)]) for t in map(self._ids, (prompt, document)))
        stream = TextStream(self.tokenizer)
        said = alone(self.model, ids, new_tokens, text=text)
        ends = [number for number, token in enumerate(said) if token == self.model.generation_config.eos_token_id]
        return "".join(map(stream.push, said[: ends[0]] if ends else said)) + stream.end()

    def _ids(self, text: str | None) -> Any:
        return None if text is None else self.tokenizer(text, add_special_tokens=False)["input_ids"]


def wait_until(true: Callable[[], Any]) -> None:
    """Ends when it is, and fails where it never is."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, "it never was"
        time.sleep(0.01)


@torch.inference_mode()
def alone(
    model: Any,
    ids: Tensor,
    new_tokens: int,
    policy: Any = KEPT,
    bits: int | None = None,
    piece: int = 24,
    text: Any = None,
) -> list[int]:
    """What a single run says, token by token, after a text that it has read before."""
    cache = MemoryCache(model, policy, bits=bits)
    if text is not None:
        for part in text.split(piece, dim=1):
            model(part, past_key_values=cache)
        cache.settle()
    for part in ids.split(piece, dim=1):
        logits = model(part, past_key_values=cache).logits
    said: list[int] = []
    while len(said) < new_tokens:
        said.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([said[-1:]]), past_key_values=cache).logits
    return said
