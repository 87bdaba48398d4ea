"""Clients that ask a server without a pause, and what is seen of the server meanwhile; for benchmarks/serving.py.

A client has one request at a time. Where the server says 429 it waits as long as it is told and asks the same again, so
that what a request took is from its first try to its last token.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

Row = dict[str, Any]
SAMPLED = {
    "held": "namm_held_bytes",
    "reserved": "namm_reserved_bytes",
    "active": "namm_active",
    "queued": "namm_queued",
    "documents": "namm_documents_in_memory",
    "resident": "process_resident_memory_bytes",
}


@dataclass(frozen=True)
class Answer:
    """One that came whole.

    Attributes:
        number: of the request.
        text: that was said. tokens: of it.
        ended: seconds since the load began.
        first: seconds from the first try to the first piece of text. whole: to the last.
    """

    number: int
    text: str
    tokens: int
    ended: float
    first: float
    whole: float


@dataclass
class Load:
    """So many clients for so many seconds, each of whom asks at least once, and is answered before it goes.

    Attributes:
        asked: path and body of every request that there may be, taken in turn.
        answers: in the order of their ends.
        refused: answers of 429.
        failed: anything else.
        samples: of the server, name by name in turn; "seconds" is when.
        took: seconds until the last answer.
    """

    url: str
    asked: Sequence[tuple[str, Row]]
    clients: int
    seconds: float
    answers: list[Answer] = field(default_factory=list)
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    took: float = 0.0

    def run(self) -> None:
        """Ends when all are answered."""
        self._numbers, self._begun, self._lock = itertools.count(), time.perf_counter(), threading.Lock()
        threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        with httpx2.Client(base_url=self.url, timeout=None) as http:
            self._look(http)
            self._begun = time.perf_counter()
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(min(1.0, self.seconds / 10))
                self._look(http)
        self.took = max((answer.ended for answer in self.answers), default=self._now())

    def _look(self, http: httpx2.Client) -> None:
        for name, value in {"seconds": self._now(), **sample(http)}.items():
            self.samples.setdefault(name, []).append(round(value, 2))

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    def _client(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=None, verify=False) as http:  # which loads no certificates
            while True:
                number, begun = next(self._numbers) % len(self.asked), self._now()
                try:
                    while (wait := self._ask(http, number, begun)) is not None:
                        time.sleep(wait)
                except Exception as error:  # whatever it is, it is told with the numbers
                    self.failed.append(f"{type(error).__name__}: {error}")
                    time.sleep(1)
                if self._now() >= self.seconds:
                    return

    def _ask(self, http: httpx2.Client, number: int, begun: float) -> float | None:
        """One try; how many seconds to wait before the next, None: it is over."""
        path, body = self.asked[number]
        first, pieces, tokens = None, [], 0
        with http.stream("POST", path, json=body) as answer:
            if answer.status_code == 429:
                with self._lock:
                    self.refused += 1
                return float(answer.headers["retry-after"])
            if answer.status_code != 200:
                self.failed.append(f"{answer.status_code}: {answer.read().decode()}")
                return None
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    first = first or (self._now() if text else None)
                    pieces.append(text)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        if not tokens:
            self.failed.append("a stream has no end")
            return None
        ended = self._now()
        times = [round(then, 3) for then in (ended, (first or ended) - begun, ended - begun)]
        self.answers.append(Answer(number, "".join(pieces), tokens, *times))
        return None


def sample(http: httpx2.Client) -> dict[str, float]:
    """What the server's metrics say now, between two of its turns."""
    lines = (line.rsplit(" ", 1) for line in http.get("/metrics").raise_for_status().text.splitlines())
    found = {name: value for name, value in lines if not name.startswith("#")}
    return {name: float(found[own]) for name, own in SAMPLED.items() if own in found}
