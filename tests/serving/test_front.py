"""What stands before replicas, and documents that several servers see; without Ray."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from served import KEPT, PATIENCE, Address, wait_until
from starlette.testclient import TestClient
from starlette.types import Message

from namm.policies import Full
from namm.serving.admission import Admission
from namm.serving.app import create_app
from namm.serving.documents import ID, Documents
from namm.serving.errors import ServingError
from namm.serving.forwarded import Forwarded, play
from namm.serving.front import TRIES, Front, ReplicaDied, front_app
from namm.serving.jobs import Job
from namm.serving.settings import Settings
from namm.serving.shared import SharedDocuments

TEXT = "To be, or not to be, that is the question. " * 3
ASKED = {"model": "tiny", "prompt": "Why?", "max_tokens": 9, "temperature": 0}


class Together:
    """Two applications in this process, which die when they are told to.

    Attributes:
        apps: by name.
        asked: name and request of all that was handed on.
        deaths: how often one still dies, after so many messages.
    """

    def __init__(self, apps: Mapping[str, Any]) -> None:
        self.apps = apps
        self.asked: list[tuple[str, Forwarded]] = []
        self.deaths, self.after = 0, 0
        self.full = False

    async def ask(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        if self.full:
            raise ServingError(429, "too many", "queue_full", retry_after=3)
        names = sorted(self.apps)
        name = names[len(self.asked) % 2] if request.document is None else names[int(request.document[-1], 16) % 2]
        self.asked.append((name, request))
        sent = 0
        async for message in play(self.apps[name], request):
            if self.deaths and sent == self.after:
                self.deaths -= 1
                raise ReplicaDied
            yield message
            sent += 1

    async def ask_all(self, request: Forwarded) -> dict[str, str]:
        found = {}
        for name, app in self.apps.items():
            found[name] = b"".join([part.get("body", b"") async for part in play(app, request)]).decode()
        return found

    async def forget(self, document: str) -> None:
        for app in self.apps.values():
            app.state.engine.ask(lambda own=app: own.state.engine.scheduler.memory.drop(document))

    async def stop(self) -> None:
        for app in self.apps.values():
            app.state.engine.ask(app.state.engine.scheduler.stop)


class Fronted(Address):
    """A front of two, over HTTP."""

    front: Front

    @property
    def replicas(self) -> Any:
        return self.front.replicas


@pytest.fixture
def serve_two(loaded: tuple[Any, Any], tmp_path: Path) -> Iterator[Callable[..., Fronted]]:
    ends: list[Callable[[], None]] = []

    def begin(**limits: Any) -> Fronted:
        settings = Settings(**{"piece": 24} | limits)
        apps = {}
        for name in "ab":
            documents = SharedDocuments(tmp_path / "shared", *loaded)
            apps[name] = create_app(*loaded, KEPT, documents, settings, name="tiny")
            ends.append(apps[name].state.engine.close)
        front = Front(Together(apps))
        app = front_app(front, settings)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        ends.extend([thread.join, lambda: setattr(server, "should_exit", True)])
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        found = Fronted(f"http://127.0.0.1:{port}", app, *loaded)
        found.front = front
        return found

    yield begin
    for end in reversed(ends):
        end()


@pytest.fixture
def two(serve_two: Callable[..., Fronted]) -> Fronted:
    return serve_two()


def test_a_document_is_read_and_asked_in_one_place_and_seen_in_all(two: Fronted) -> None:
    documents = [two.read(TEXT + str(number), raw=True) for number in range(4)]
    for document in documents:
        place = next(name for name, request in two.replicas.asked if request.document == document)
        said = two.call("POST", "/v1/completions", json=ASKED | {"document": document})
        assert said.status_code == 200 and said.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
        assert two.call("GET", f"/v1/documents/{document}").json()["id"] == document
        assert {name for name, request in two.replicas.asked if request.document == document} == {place}
        own = two.replicas.apps[place].state.engine
        assert own.scheduler.memory.documents[document].cache is not None
        other = two.replicas.apps["b" if place == "a" else "a"]
        assert document not in other.state.engine.scheduler.memory.documents
        answer = own_answer(other, ASKED | {"document": document})
        assert answer["choices"] == said.json()["choices"], "the other one loads it and says the same"
    for name in "ab":
        assert [own.id for own in two.replicas.apps[name].state.documents.every()] == sorted(
            documents, key=lambda id: (two.call("GET", f"/v1/documents/{id}").json()["created"], id)
        )


def own_answer(app: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return TestClient(app).post("/v1/completions", json=asked).json()


def test_what_one_deletes_none_has(two: Fronted) -> None:
    document = two.read(TEXT, raw=True)
    for app in two.replicas.apps.values():
        assert "choices" in own_answer(app, ASKED | {"document": document})
    assert two.call("DELETE", f"/v1/documents/{document}").status_code == 200
    for app in two.replicas.apps.values():
        assert own_answer(app, ASKED | {"document": document})["error"]["code"] == "document_not_found"
        wait_until(lambda own=app: not own.state.engine.scheduler.memory.documents)
        assert app.state.documents.every() == [] and app.state.documents.count() == 0
    assert two.call("DELETE", f"/v1/documents/{document}").status_code == 404
    assert two.call("GET", "/v1/documents").json()["data"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_death_before_a_word_is_no_clients_business(two: Fronted, stream: bool) -> None:
    expected = two.call("POST", "/v1/completions", json=ASKED).json()["choices"]
    two.replicas.deaths, two.replicas.after = TRIES - 1, 1  # after the head of the answer
    before = len(two.replicas.asked)
    answer = two.call("POST", "/v1/completions", json=ASKED | {"stream": stream})
    assert answer.status_code == 200 and len(two.replicas.asked) == before + TRIES
    if stream:
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
        assert text == expected[0]["text"]
    else:
        assert answer.json()["choices"] == expected


def test_a_document_that_goes_while_it_is_admitted_harms_nobody(two: Fronted, monkeypatch: pytest.MonkeyPatch) -> None:
    document = two.read(TEXT, raw=True)
    asyncio.run(two.replicas.forget(document))
    reserve = Admission.reserve

    def reserved(self: Admission, job: Job) -> bool:
        found = reserve(self, job)
        shutil.rmtree(self.documents.folder / document, ignore_errors=True)  # as another server would
        return found

    monkeypatch.setattr(Admission, "reserve", reserved)
    answer = two.call("POST", "/v1/completions", json=ASKED | {"document": document})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "document_not_found")
    assert two.call("POST", "/v1/completions", json=ASKED).status_code == 200
    assert all(app.state.engine.alive for app in two.replicas.apps.values())


def test_a_text_whose_reader_dies_is_one_document(two: Fronted) -> None:
    two.replicas.deaths, two.replicas.after = 1, 1  # it was read, and nobody heard of it
    document = two.read(TEXT, raw=True)
    assert len(two.replicas.asked) == 2 and len({request.document for _, request in two.replicas.asked}) == 1
    assert [card["id"] for card in two.call("GET", "/v1/documents").json()["data"]] == [document]


def test_too_many_deaths_are_an_error(two: Fronted) -> None:
    two.replicas.deaths = TRIES
    answer = two.call("POST", "/v1/completions", json=ASKED)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "replica_died"
    assert answer.headers["Retry-After"] == "1" and len(two.replicas.asked) == TRIES
    assert two.call("POST", "/v1/completions", json=ASKED).status_code == 200


def test_a_death_within_a_stream_is_its_last_event(two: Fronted) -> None:
    two.replicas.deaths, two.replicas.after = 1, 3
    answer = two.call("POST", "/v1/completions", json=ASKED | {"stream": True})
    assert answer.status_code == 200 and len(two.replicas.asked) == 1
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert len(lines) == 3 and json.loads(lines[-1])["error"]["code"] == "replica_died"
    two.replicas.deaths = 1
    with pytest.raises(openai.APIError, match="has died"):
        list(two.client().completions.create(**ASKED, stream=True))


def test_errors_come_through_as_they_are(two: Fronted) -> None:
    for method, path, options in (
        ("POST", "/v1/completions", {"json": ASKED | {"n": 2}}),
        ("POST", "/v1/completions", {"content": b'{"document'}),
        ("POST", "/v1/completions", {"content": b'["document", "doc-"]'}),
        ("POST", "/v1/completions", {"json": ASKED | {"document": "doc-" + "0" * 32}}),
        ("POST", "/v1/completions", {"json": ASKED | {"document": 3}}),
        ("GET", "/v1/documents/../secret", {}),
        ("GET", "/nowhere?a=b", {}),
        ("PUT", "/v1/models", {}),
    ):
        found = two.call(method, path, **options)
        plain = TestClient(two.replicas.apps["a"]).request(method, path, **options)
        assert (found.status_code, found.json()) == (plain.status_code, plain.json()), path
        assert found.headers["content-type"] == plain.headers["content-type"]
    two.replicas.full = True
    answer = two.call("POST", "/v1/completions", json=ASKED)
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "3"


def test_keys_and_bodies_are_looked_at_before_anything_is_handed_on(serve_two: Callable[..., Fronted]) -> None:
    server = serve_two(keys=("secret",), body=1000)
    assert server.call("GET", "/v1/models").status_code == 401
    headers = {"Authorization": "Bearer secret"}
    big = server.call("POST", "/v1/completions", json=ASKED | {"prompt": "x" * 2000}, headers=headers)
    assert big.status_code == 413 and not server.replicas.asked
    assert server.call("GET", "/v1/models", headers=headers).json()["data"][0]["id"] == "tiny"
    assert server.call("GET", "/health").json() == {"status": "ok"}
    assert "script" in server.call("GET", "/").text


def test_what_prometheus_reads_is_of_all(two: Fronted) -> None:
    document = two.read(TEXT, raw=True)
    two.call("POST", "/v1/completions", json=ASKED | {"document": document})
    page = two.call("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(page.text)}
    assert families["namm_requests"].type == "counter" and families["namm_active"].type == "gauge"
    place = two.replicas.asked[0][0]
    found = {(s.name, *s.labels.values()): s.value for own in families.values() for s in own.samples}
    assert found["namm_requests_total", "answered", place] == found["namm_requests_total", "read", place] == 1
    assert found["namm_documents_in_memory", place] == 1
    assert found["namm_documents_in_memory", "b" if place == "a" else "a"] == 0
    assert families["namm_kept_fraction"].type == "histogram"


def test_a_client_that_goes_frees_what_it_had(two: Fronted) -> None:
    asked = ASKED | {"max_tokens": 3000, "stream": True}
    with httpx2.stream("POST", f"{two.url}/v1/completions", json=asked, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()  # which ends the stream when it is collected
        next(lines)
        assert two.front.running == 1
    wait_until(lambda: not any(app.state.engine.busy for app in two.replicas.apps.values()))
    assert two.front.running == 0


def test_the_end_waits_for_what_runs_and_takes_nothing_new(two: Fronted) -> None:
    answers: list[Any] = []

    def ask(count: int) -> threading.Thread:
        asked = ASKED | {"max_tokens": count}
        thread = threading.Thread(target=lambda: answers.append(two.call("POST", "/v1/completions", json=asked)))
        thread.start()
        wait_until(lambda: any(app.state.engine.busy for app in two.replicas.apps.values()))
        return thread

    thread = ask(300)
    asyncio.run(two.front.drain(PATIENCE))
    assert two.front.running == 0
    thread.join()
    assert answers.pop().status_code == 200
    assert two.call("POST", "/v1/completions", json=ASKED).json()["error"]["code"] == "stopping"
    health = two.call("GET", "/health")
    assert (health.status_code, health.json()) == (503, {"status": "stopping"})
    two.front.draining = False
    thread = ask(3000)
    asyncio.run(two.front.drain(0.0))
    thread.join()
    assert answers.pop().json()["error"]["code"] == "stopping"


def test_a_shared_folder_is_no_other_servers(loaded: tuple[Any, Any], tmp_path: Path, start: Any) -> None:
    first = SharedDocuments(tmp_path / "own", *loaded)
    with pytest.raises(ValueError, match="another run is at work"):
        Documents(tmp_path / "own", *loaded)
    half = tmp_path / "own" / ("doc-" + "0" * 32)
    half.mkdir()
    second = SharedDocuments(tmp_path / "own", *loaded)
    assert half.exists(), "the first may be writing it"
    assert second.find(half.name) is None and second.every() == [] and second.find("../own") is None
    first.close()
    second.close()
    third = SharedDocuments(tmp_path / "own", *loaded)
    assert not half.exists(), "nobody writes it any more"
    third.close()
    served = start(folder=tmp_path / "own", policy=Full())
    assert not list(filter(ID.fullmatch, (entry.name for entry in served.engine.documents.folder.iterdir())))
