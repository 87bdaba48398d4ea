"""`namm serve` under load: clients that ask without a pause, beside a server that takes one request at a time.

Every client asks about documents that were read before, or has a text gone on with, and waits as it is told where the
queue is full. The memory budget is a part of what the requests of all clients at once, and the documents, may come to
hold by the server's own reckoning. Every answer is compared with that of a single run; weights are float32, in which a
batch rounds so little that answers are the same. What the server holds is asked of its metrics every second. Server and
clients are processes of their own.

    python benchmarks/serving.py                       # SmolLM2: about 15 minutes on two cores
    python benchmarks/serving.py --loads 8,32,60,2     # 8 clients, 32 at once, for 60 s, with half of what they need
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import torch
from clients import Load, sample
from measuring import Measurements, Row, Setup, made_with, parser
from rich.progress import track
from torch import Tensor

import namm
from namm.policies import NAMMPolicy
from namm.serving.app import ends_of
from namm.serving.documents import Document, Documents
from namm.serving.prompts import Prompts
from namm.serving.schemas import ChatRequest, CompletionRequest
from namm.serving.sizes import Sizes
from namm.serving.text import TextStream
from namm.tasks import packaged_prose
from namm.tasks.chat import before_questions, has_chat
from namm.tasks.encode import encode

QUESTIONS = (
    "Who is it about?",
    "Where does it take place?",
    "What happens first?",
    "What is said of the weather?",
    "How does it end? Say it in one sentence.",
    "Which of the people is the oldest?",
)
BEGINNINGS = (0.1, 0.28), (0.15, 0.6)  # of texts in turn, that are to be gone on with
NAME = "measured"
READ_WITH = 2**31  # bytes, while documents are read


@dataclass(frozen=True)
class Plan:
    """One load.

    Attributes:
        clients: that ask. batch: requests that are served at once at most.
        seconds: for which clients go on asking.
        times: how many times the budget would hold what the most clients of all loads need.
    """

    clients: int
    batch: int
    seconds: float
    times: float

    @classmethod
    def of(cls, text: str) -> Plan:
        """From ``clients,batch,seconds,times``."""
        clients, batch, seconds, times = text.split(",")
        return cls(int(clients), int(batch), float(seconds), float(times))


PLANS = "1,32,30,10", "8,32,45,10", "64,32,300,10", "64,32,45,1", "8,1,45,10", "64,1,45,10"


@dataclass(frozen=True)
class Work:
    """What is asked, and of whom.

    Attributes:
        policy: of the server.
        folder: with the documents, read once.
        documents: by id.
        asked: path and body of each request. encoded: its tokens ``[1, n]``.
        needed: bytes that each may come to hold, its document's not counted.
        wanted: what a single run answers.
    """

    setup: Setup
    arguments: Any
    policy: NAMMPolicy
    folder: Path
    documents: dict[str, Document]
    asked: list[tuple[str, Row]]
    encoded: list[Tensor]
    needed: list[int]
    wanted: list[str]

    @classmethod
    def prepared(cls, setup: Setup, arguments: Any, policy: NAMMPolicy, texts: list[str], folder: Path) -> Work:
        """Read the texts as documents, and see what single runs answer."""
        with served(arguments, folder, READ_WITH, batch=1) as url:
            ids = [
                httpx2.post(f"{url}/v1/documents", json={"text": text}, timeout=None).raise_for_status().json()["id"]
                for text in texts
            ]
        opened = Documents(folder, setup.model, setup.tokenizer)
        opened.close()
        known, asked = opened.known, requests(setup, ids, texts, arguments.new_tokens)
        encoded = [encode_request(setup, body, known) for _, body in asked]
        sizes = Sizes.of(setup.model, arguments.piece)
        needed = []
        for (_, body), prompt in zip(asked, encoded, strict=True):
            tokens, document = prompt.shape[1] + body["max_tokens"], known.get(body.get("document", ""))
            told = policy, arguments.bits
            own = sizes.most(*told, tokens)
            if document is not None:
                own = sizes.more(*told, document.tokens, document.undecided, tokens)
            needed.append(own)
        wanted = single_runs(setup, policy, arguments, dict(zip(ids, texts, strict=True)), asked, encoded)
        return cls(setup, arguments, policy, folder, known, asked, encoded, needed, wanted)

    def demand(self, clients: int) -> int:
        """Bytes that the requests of so many clients at once may come to hold, and all documents, each once."""
        requests = clients * sum(self.needed) / len(self.needed)
        return int(requests + sum(document.bytes for document in self.documents.values()))

    def budget(self, times: float) -> int:
        """Of the server, so that the most clients of all loads need so many times of it."""
        found = int(self.demand(max(plan.clients for plan in self.arguments.loads)) / times)
        largest = max(self.needed) + max((document.bytes for document in self.documents.values()), default=0)
        if found < largest:
            raise SystemExit(f"a budget of {found} bytes is less than one request needs ({largest}): more clients")
        return found


@contextmanager
def served(arguments: Any, folder: Path, memory: int, batch: int) -> Iterator[str]:
    """The command, in a process of its own: its address."""
    options = ["--model", arguments.model, "--memory", arguments.memory, "--dtype", "float32", "--name", NAME]
    options += ["--folder", folder, "--cache-bytes", memory, "--batch", batch, "--queue", arguments.queue, "--port", 0]
    options += ["--kept", arguments.kept, "--piece", arguments.piece]
    options += [] if arguments.bits is None else ["--bits", arguments.bits]
    options += [] if arguments.device is None else ["--device", arguments.device]
    environment = os.environ | {"PYTHONPATH": str(Path(namm.__file__).parents[1])}
    command = [sys.executable, "-m", "namm", "serve", *map(str, options)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if "is served at" in line), None)
            if line is None:
                raise SystemExit("the server has not started")
            yield line.split()[-1]
        finally:
            process.terminate()
        if process.wait():
            raise SystemExit(f"the server ended with {process.returncode}")


def requests(setup: Setup, ids: Sequence[str], texts: Sequence[str], new_tokens: int) -> list[tuple[str, Row]]:
    """Questions about each document, and beginnings of texts that are to be gone on with, well mixed."""
    options = {"model": NAME, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    options |= {"stream_options": {"include_usage": True}}
    chat, found = has_chat(setup.tokenizer), []
    for id, text, parts in zip(ids, texts, itertools.cycle(BEGINNINGS), strict=False):
        for question in QUESTIONS:
            asked = {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}
            path = "/v1/chat/completions" if chat else "/v1/completions"
            found.append((path, options | {"document": id} | asked))
        found += [("/v1/completions", options | {"prompt": text[: int(part * len(text))]}) for part in parts]
    random.Random(0).shuffle(found)
    return found


def encode_request(setup: Setup, body: Row, documents: dict[str, Document]) -> Tensor:
    """``[1, tokens]`` of a request, as the server encodes it."""
    prompts, document = Prompts.of(setup.model, setup.tokenizer, None), documents.get(body.get("document", ""))
    if "messages" in body:
        return prompts.chat(ChatRequest(**body), document)
    return prompts.completion(CompletionRequest(**body), document)


@torch.inference_mode()
def single_runs(
    setup: Setup,
    policy: NAMMPolicy,
    arguments: Any,
    texts: dict[str, str],
    asked: Sequence[tuple[str, Row]],
    encoded: Sequence[Tensor],
) -> list[str]:
    """What a model says to each request that is all there is, token by token; each text is read here once more."""
    model, tokenizer, bits = setup.model, setup.tokenizer, arguments.bits
    read: dict[str, namm.MemoryCache] = {}
    answers, ends = [], ends_of(model, tokenizer)
    for (_, body), prompt in track(list(zip(asked, encoded, strict=True)), "single runs"):
        id = body.get("document")
        if id is not None and id not in read:
            read[id] = namm.MemoryCache(model, policy, bits=bits)
            in_pieces(model, read[id], encode(tokenizer, before_questions(tokenizer, texts[id])[0]), arguments.piece)
            read[id].settle()
        cache = namm.MemoryCache(model, policy, bits=bits) if id is None else read[id].fork()
        logits = in_pieces(model, cache, prompt, arguments.piece)
        stream, text = TextStream(tokenizer), ""
        for _ in range(body["max_tokens"]):
            token = int(logits.argmax())
            if token in ends:
                break
            text += stream.push(token)
            logits = model(torch.tensor([[token]], device=model.device), past_key_values=cache).logits[0, -1]
        answers.append(text + stream.end())
    return answers


def in_pieces(model: Any, cache: namm.MemoryCache, ids: Tensor, size: int) -> Tensor:
    """Read ``[1, tokens]`` as the server does; logits of what comes next, ``[vocabulary]``."""
    for piece in ids.split(size, dim=1):
        logits = model(piece.to(model.device), past_key_values=cache, logits_to_keep=1).logits[0, -1]
    return logits


def measure(work: Work, plan: Plan) -> Row:
    """One load, on a server of its own that has read the documents before."""
    memory = work.budget(plan.times)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "documents")
        shutil.copytree(work.folder, folder)
        with served(work.arguments, folder, memory, plan.batch) as url:
            load = Load(url, work.asked, plan.clients, plan.seconds)
            load.run()
            with httpx2.Client(base_url=url, timeout=None) as http:
                after = sample(http)
                for document in work.documents:
                    http.delete(f"/v1/documents/{document}").raise_for_status()
                left = sample(http)
    within = [answer for answer in load.answers if answer.ended <= plan.seconds]
    return {
        "seconds": plan.seconds,
        "took": load.took,
        "memory": memory,
        "demand": work.demand(plan.clients),
        "documents_bytes": sum(document.bytes for document in work.documents.values()),
        "requests": len(work.asked),
        "answered": len(load.answers),
        "wrong": sum(answer.text != work.wanted[answer.number] for answer in load.answers),
        "refused": load.refused,
        "failed": load.failed,
        "answered_within": len(within),
        "tokens_within": sum(answer.tokens for answer in within),
        "first_seconds": [answer.first for answer in load.answers],
        "whole_seconds": [answer.whole for answer in load.answers],
        "samples": load.samples,
        "after": after,
        "left": left,
    }


def main() -> None:
    options = parser(__doc__, "serving")
    options.add_argument(
        "--loads",
        type=Plan.of,
        nargs="+",
        default=list(map(Plan.of, PLANS)),
        metavar="CLIENTS,BATCH,SECONDS,TIMES",
        help="clients, requests served at once, seconds, and how many times the budget the most clients need",
    )
    options.add_argument("--documents", type=int, default=4)
    options.add_argument("--letters", type=int, default=4000, help="of a document")
    options.add_argument("--new-tokens", type=int, default=24)
    options.add_argument("--kept", type=float, default=0.25, help="aimed at")
    options.add_argument("--bits", type=int, help="of keys and values")
    options.add_argument("--piece", type=int, default=128, help="tokens of prompts between two steps of answers")
    options.add_argument("--queue", type=int, default=16, help="requests that wait at most")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.loads = [Plan(3, 8, 1.0, 0.5)]
        arguments.documents, arguments.letters, arguments.new_tokens = 1, 900, 6
    model, tokenizer = namm.load_model(arguments.model, dtype="float32", device=arguments.device)
    setup = Setup(model, tokenizer, namm.NAMM.from_pretrained(arguments.memory))
    results = Measurements(arguments, made_with(arguments, setup))
    policy = NAMMPolicy(setup.memory, kept=arguments.kept)
    texts = [document.text.strip()[: arguments.letters].strip() for document in packaged_prose()][: arguments.documents]
    with tempfile.TemporaryDirectory() as name:
        work = Work.prepared(setup, arguments, policy, texts, Path(name, "documents"))
        for plan in arguments.loads:
            what = {"clients": plan.clients, "batch": plan.batch, "times": plan.times}
            row = results.row(partial(measure, work, plan), **what, kept=arguments.kept, bits=arguments.bits)
            print(json.dumps({name: value for name, value in row.items() if not isinstance(value, list | dict)}))
            sys.stdout.flush()
    results.write()


if __name__ == "__main__":
    main()
