"""The server under load: clients that ask without a pause, beside a server that takes one request at a time.

Every client asks about documents that were read before, or has a text gone on with, and waits as it is told where the
queue is full. Every answer is compared with that of a single run, and the bytes that all caches hold are looked at on
the way. Weights are float32, in which a batch rounds so little that answers are the same.

    python benchmarks/serving.py                           # SmolLM2: 8 clients for a minute, one by one and together
    python benchmarks/serving.py --clients 8 64 --seconds 300 --room 24MiB
"""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn
from measuring import Measurements, Row, Setup, made_with, parser
from rich.progress import track
from torch import Tensor

import namm
from namm.policies import NAMMPolicy
from namm.serving.app import create_app, ends_of
from namm.serving.documents import Documents
from namm.serving.engine import Engine
from namm.serving.settings import Settings, parse_bytes
from namm.serving.text import TextStream
from namm.tasks import packaged_prose
from namm.tasks.answering import PIECE
from namm.tasks.chat import before_questions, has_chat
from namm.tasks.encode import encode

QUESTIONS = "Who is it about?", "Where does it take place?", "What happens first?", "What is said of the weather?"
MODEL = "measured"


@dataclass
class Load:
    """What clients saw.

    Attributes:
        asked: path and body of every request that there may be, none of which names a document twice.
        answers: number of the request and text, of each that was answered.
        first: seconds to the first piece of text. whole: to the last.
        tokens: that were said.
        refused: answers of 429.
        failed: anything else.
        held: bytes of all caches, looked at every half second.
    """

    asked: list[tuple[str, Row]]
    answers: list[tuple[int, str]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    def ask(self, http: httpx2.Client, number: int) -> float:
        """One request; how many seconds to wait before the next."""
        path, body = self.asked[number]
        begun, first, pieces, said = time.perf_counter(), None, [], 0
        with http.stream("POST", path, json=body) as answer:
            if answer.status_code == 429:
                self.refused += 1
                return float(answer.headers["retry-after"])
            if answer.status_code != 200:
                self.failed.append(f"{answer.status_code}: {answer.read().decode()}")
                return 1.0
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    first = first or (time.perf_counter() if text else None)
                    pieces.append(text)
                if event.get("usage"):
                    said = event["usage"]["completion_tokens"]
        ended = time.perf_counter()
        if not said:
            self.failed.append("a stream has no end")
            return 1.0
        self.answers.append((number, "".join(pieces)))
        self.first.append((first or ended) - begun)
        self.whole.append(ended - begun)
        self.tokens += said
        return 0.0


@contextmanager
def served(setup: Setup, policy: Any, bits: int | None, folder: Path, settings: Settings) -> Iterator[Any]:
    """A server in a thread: its address, and its engine."""
    documents = Documents(folder, setup.model, setup.tokenizer)
    app = create_app(setup.model, setup.tokenizer, policy, documents, settings, name=MODEL, bits=bits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app.state.engine
    finally:
        server.should_exit = True
        thread.join()


def requests(setup: Setup, url: str, texts: list[str], new_tokens: int) -> list[tuple[str, Row]]:
    """Read the texts as documents; questions about each, and beginnings of each that are to be gone on with."""
    options = {"model": MODEL, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    options |= {"stream_options": {"include_usage": True}}
    found = []
    for number, text in enumerate(texts):
        answer = httpx2.post(f"{url}/v1/documents", json={"text": text, "name": str(number)}, timeout=None)
        about = options | {"document": answer.raise_for_status().json()["id"]}
        for question in QUESTIONS:
            asked = {"messages": [{"role": "user", "content": question}]}
            path = "/v1/chat/completions" if has_chat(setup.tokenizer) else "/v1/completions"
            found.append((path, about | (asked if has_chat(setup.tokenizer) else {"prompt": question})))
        found += [("/v1/completions", options | {"prompt": text[: 300 * (n + 1)]}) for n in range(2)]
    return found


@torch.inference_mode()
def single_runs(setup: Setup, engine: Engine, policy: Any, bits: int | None, texts: list[str], load: Load) -> list[str]:
    """What a model says to each request that is all there is, token by token."""
    model, tokenizer, prompts = setup.model, setup.tokenizer, engine_prompts(setup)
    read: dict[str, namm.MemoryCache] = {}
    answers = []
    for _, body in track(load.asked, "single runs"):
        document = engine.documents.known.get(body.get("document", ""))
        if document is None:
            cache = namm.MemoryCache(model, policy, bits=bits)
        else:
            if document.id not in read:
                read[document.id] = namm.MemoryCache(model, policy, bits=bits)
                begun = encode(tokenizer, before_questions(tokenizer, texts[int(document.name)])[0])
                pieces(model, read[document.id], begun)
                read[document.id].settle()
            cache = read[document.id].fork()
        logits = pieces(model, cache, prompts(body, document))
        stream, text, ends = TextStream(tokenizer), "", ends_of(model, tokenizer)
        for _ in range(body["max_tokens"]):
            token = int(logits.argmax())
            if token in ends:
                break
            text += stream.push(token)
            logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        answers.append(text + stream.end())
    return answers


def engine_prompts(setup: Setup) -> Any:
    """Encodes a request's body as the server does."""
    from namm.serving.prompts import Prompts
    from namm.serving.schemas import ChatRequest, CompletionRequest

    prompts = Prompts.of(setup.model, setup.tokenizer, None)

    def encoded(body: Row, document: Any) -> Tensor:
        if "messages" in body:
            return prompts.chat(ChatRequest(**body), document)
        return prompts.completion(CompletionRequest(**body), document)

    return encoded


def pieces(model: Any, cache: namm.MemoryCache, ids: Tensor) -> Tensor:
    """Read ``[1, tokens]`` as the server does; logits of what comes next, ``[vocabulary]``."""
    for piece in ids.split(PIECE, dim=1):
        logits = model(piece.to(model.device), past_key_values=cache, logits_to_keep=1).logits[0, -1]
    return logits


def under_load(url: str, engine: Engine, load: Load, clients: int, seconds: float) -> float:
    """Have so many clients ask; the seconds until the last answer."""
    begun = time.perf_counter()
    numbers = itertools.count()

    def client() -> None:
        with httpx2.Client(base_url=url, timeout=None) as http:
            while time.perf_counter() - begun < seconds:
                time.sleep(load.ask(http, next(numbers) % len(load.asked)))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load.held.append(engine.ask(engine.snapshot).result().held)
        time.sleep(0.5)
    return time.perf_counter() - begun


def measure(setup: Setup, policy: Any, arguments: Any, texts: list[str], clients: int, batch: int) -> Row:
    """One load on a server that serves so many requests at once."""
    settings = Settings(memory=parse_bytes(arguments.room), queue=arguments.queue, batch=batch)
    bits = arguments.bits
    with tempfile.TemporaryDirectory() as folder, served(setup, policy, bits, Path(folder), settings) as (url, engine):
        load = Load(requests(setup, url, texts, arguments.new_tokens))
        before = engine.ask(engine.snapshot).result().held
        took = under_load(url, engine, load, clients, arguments.seconds)
        after = engine.ask(engine.snapshot).result()
        wanted = single_runs(setup, engine, policy, bits, texts, load)
    wrong = [number for number, text in load.answers if text != wanted[number]]
    return {
        "seconds": took,
        "answered": len(load.answers),
        "wrong": len(wrong),
        "refused": load.refused,
        "failed": load.failed,
        "tokens": load.tokens,
        "first_seconds": load.first,
        "whole_seconds": load.whole,
        "memory": settings.memory,
        "held_before": before,
        "held_most": max(load.held),
        "held_after": after.held,
        "reserved_after": after.reserved,
    }


def main() -> None:
    options = parser(__doc__, "serving")
    options.add_argument("--clients", type=int, nargs="+", default=[8])
    options.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="requests that are served at once")
    options.add_argument("--seconds", type=float, default=60.0, help="for which clients go on asking")
    options.add_argument("--documents", type=int, default=3)
    options.add_argument("--letters", type=int, default=4000, help="of a document")
    options.add_argument("--new-tokens", type=int, default=32)
    options.add_argument("--kept", type=float, default=0.25, help="aimed at")
    options.add_argument("--bits", type=int, help="of keys and values")
    options.add_argument("--room", default="1GiB", help="that all caches may hold together")
    options.add_argument("--queue", type=int, default=64, help="requests that wait at most")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds, arguments.documents = [3], 1.0, 1
        arguments.letters, arguments.new_tokens = 900, 6
    model, tokenizer = namm.load_model(arguments.model, dtype="float32", device=arguments.device)
    setup = Setup(model, tokenizer, namm.NAMM.from_pretrained(arguments.memory))
    results = Measurements(arguments, made_with(arguments, setup))
    policy = NAMMPolicy(setup.memory, kept=arguments.kept)
    texts = [document.text.strip()[: arguments.letters].strip() for document in packaged_prose()][: arguments.documents]
    for clients, batch in itertools.product(arguments.clients, arguments.batches):
        run = partial(measure, setup, policy, arguments, texts, clients, batch)
        row = results.row(run, clients=clients, batch=batch, kept=arguments.kept, bits=arguments.bits)
        print({name: value for name, value in row.items() if not isinstance(value, list)}, flush=True)
    results.write()


if __name__ == "__main__":
    main()
