"""Two replicas on Ray Serve: one is killed under load, then all."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commanded import HEADERS, Process, name_of
from prometheus_client.parser import text_string_to_metric_families
from served import PATIENCE, wait_until
from typer.testing import CliRunner

from namm.cli import app
from namm.serving.settings import Settings

pytest.importorskip("ray.serve")
from namm.serving.replicas import Scale  # noqa: E402

TEXT = "To be, or not to be, that is the question. " * 5
ASKED = {"max_tokens": 20}
LONG = 120  # seconds that a replica may take to start on a busy machine


def metric(server: Process, name: str, **labels: str) -> dict[str, float]:
    """By replica."""
    page = server.call("GET", "/metrics").text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {s.labels["replica"]: s.value for s in samples if s.name == name and labels.items() <= s.labels.items()}


@pytest.fixture
def endless(model_folder: Path, tmp_path: Path, command: Callable[..., Process]) -> Callable[..., Process]:
    """Starts the command with a model whose answers are as long as they may be."""
    folder = tmp_path / "endless"
    shutil.copytree(model_folder, folder)
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(told | {"eos_token_id": []}))
    return lambda *more: command("--model", str(folder), *more)


class Client(threading.Thread):
    """Asks again and again, in turn for a whole answer and for a stream, and notes what came."""

    def __init__(self, server: Process, expected: dict[str, str]) -> None:
        super().__init__()
        self.server, self.expected = server, expected
        self.ended = threading.Event()
        self.right, self.refused, self.wrong = 0, list[str](), list[Any]()
        self.start()

    def run(self) -> None:
        while not self.ended.is_set():
            for document, text in self.expected.items():
                for ask in (self.whole, self.stream):
                    try:
                        self.note(ask(document), text)
                    except (httpx2.HTTPError, ValueError, KeyError) as error:  # nothing that a client of OpenAI's reads
                        self.wrong.append(repr(error))

    def note(self, found: str | dict[str, Any], text: str) -> None:
        if isinstance(found, dict):
            self.refused.append(found["error"]["code"])
        elif found == text:
            self.right += 1
        else:
            self.wrong.append(found)

    def whole(self, document: str) -> str | dict[str, Any]:
        answer = self.server.ask(document=document, **ASKED).json()
        return answer if "error" in answer else answer["choices"][0]["text"]

    def stream(self, document: str) -> str | dict[str, Any]:
        asked = {"model": "tiny", "prompt": "Why?", "temperature": 0, "document": document, "stream": True} | ASKED
        options: dict[str, Any] = {"json": asked, "headers": HEADERS, "timeout": PATIENCE}
        with httpx2.stream("POST", f"{self.server.url}/v1/completions", **options) as answer:
            if answer.status_code != 200:
                return json.loads(answer.read())
            parts = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        if "error" in parts[-1]:
            return json.loads(parts[-1])
        assert parts.pop() == "[DONE]"
        return "".join(json.loads(part)["choices"][0]["text"] for part in parts)


def answers(server: Process, documents: list[str]) -> dict[str, str]:
    return {own: server.ask(document=own, **ASKED).json()["choices"][0]["text"] for own in documents}


def cards(server: Process) -> list[dict[str, Any]]:
    return server.call("GET", "/v1/documents").json()["data"]


def test_a_replica_is_killed_under_load_and_then_all(endless: Callable[..., Process]) -> None:
    server = endless("--replicas", "2")
    assert httpx2.get(f"{server.url}/v1/models").status_code == 401
    documents: list[str] = []
    while len(metric(server, "namm_requests_total", outcome="read")) < 2:  # until both have one
        documents.append(server.read(TEXT + str(len(documents))))
    expected, listed = answers(server, documents), cards(server)
    assert {card["id"] for card in listed} == set(documents) and len(set(expected.values())) == len(documents)
    in_memory = metric(server, "namm_documents_in_memory")
    assert len(in_memory) == 2 and sum(in_memory.values()) == len(documents), "each is asked where it was read"

    killed, other = server.replicas()
    clients = [Client(server, expected) for _ in range(4)]
    wait_until(lambda: sum(client.right for client in clients) > 20)
    killed.kill()
    before = sum(client.right for client in clients)
    wait_until(lambda: sum(client.right for client in clients) > before + 40)
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join()
        assert not client.wrong
        assert set(client.refused) <= {"replica_died", "no_replica"}
    assert cards(server) == listed
    assert answers(server, documents) == expected, "one answers for both"
    until = time.monotonic() + LONG
    while len(metric(server, "namm_active")) < 2:
        assert time.monotonic() < until, "no replica came for the one that was killed"
    assert other in server.replicas() and killed not in server.replicas()
    assert answers(server, documents) == expected and cards(server) == listed

    deleted = documents.pop()
    assert server.call("DELETE", f"/v1/documents/{deleted}").json()["deleted"]
    assert server.call("DELETE", f"/v1/documents/{deleted}").status_code == 404
    assert server.ask(document=deleted).status_code == 404
    wait_until(lambda: deleted not in [card["id"] for card in cards(server)])

    asked = {"model": "tiny", "prompt": "Why?", "max_tokens": 3000, "temperature": 0, "stream": True}
    with httpx2.stream("POST", f"{server.url}/v1/completions", json=asked, headers=HEADERS, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()  # which ends the stream when it is collected
        next(lines)
        wait_until(lambda: sum(metric(server, "namm_active").values()) == 1)
    wait_until(lambda: sum(metric(server, "namm_active").values()) == 0)

    replicas = server.replicas()
    clients = [Client(server, {own: expected[own] for own in documents}) for _ in range(2)]
    wait_until(lambda: all(client.right for client in clients))
    server.process.send_signal(signal.SIGKILL)
    for client in clients:
        client.ended.set()
        client.join()
    wait_until(lambda: not any(name_of(own) for own in replicas))
    alone = endless()
    assert cards(alone) == [card for card in listed if card["id"] != deleted]
    assert answers(alone, documents) == {own: expected[own] for own in documents}


def test_what_replicas_are_told(tmp_path: Path) -> None:
    settings = Settings(batch=7)
    assert Scale(3).options(settings) == {"num_replicas": 3}
    (scaling,) = Scale(2, 5).options(settings).values()
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 7)
    assert Scale(2, 5, ongoing=3).options(settings)["autoscaling_config"].target_ongoing_requests == 3
    for wrong, reason in (
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"replicas": 3, "most": 2}, "at most 2 replicas are fewer than the 3"),
        ({"ongoing": 2}, "only with a highest number"),
    ):
        with pytest.raises(ValueError, match=reason):
            Scale(**wrong)
    options = ["serve", "--folder", str(tmp_path), "--replicas", "3", "--max-replicas", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code and "are fewer than" in " ".join(result.stderr.split())


def test_options_reach_every_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("namm.serving.cluster.run", lambda *arguments: told.extend(arguments))
    options = ["--gpus", "1", "--rehearse", "--piece", "77", "--kept", "0.5", "--bits", "4"]
    result = CliRunner().invoke(app, ["serve", "--folder", str(tmp_path), "--replicas", "2", *options])
    assert result.exit_code == 0, result.stderr
    recipe, scale = told[:2]
    assert recipe.options == {"device": "cuda"}, "a GPU that Ray gives is used"
    assert (recipe.settings.rehearse, recipe.settings.piece, recipe.bits) == (True, 77, 4)
    assert (scale.replicas, scale.gpus) == (2, 1)


@pytest.mark.slow
def test_a_replica_that_cannot_start(tmp_path: Path) -> None:
    options = ["serve", "--folder", str(tmp_path / "own"), "--replicas", "1", "--port", "0", "--model", str(tmp_path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 1
    assert "a replica can't start: The folder" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_more_replicas_come_under_load_and_a_signal_loses_no_answer(endless: Callable[..., Process]) -> None:
    server = endless("--replicas", "1", "--max-replicas", "2", "--ongoing", "1")
    document = server.read(TEXT)
    clients = [Client(server, answers(server, [document])) for _ in range(4)]
    until = time.monotonic() + 2 * LONG
    while len(metric(server, "namm_active")) < 2:
        assert time.monotonic() < until, "no second replica came"
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join()
        assert client.right and not client.wrong and not client.refused

    later: list[Any] = []
    thread = threading.Thread(target=lambda: later.append(server.ask(max_tokens=1500)))
    thread.start()
    wait_until(lambda: sum(metric(server, "namm_active").values()) == 1)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.ask().status_code == 503)
    thread.join()
    assert later[0].status_code == 200 and later[0].json()["usage"]["completion_tokens"] > 20
    assert server.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_what_is_too_much_is_refused_and_what_is_given_up_is_told(endless: Callable[..., Process]) -> None:
    server = endless("--replicas", "1", "--batch", "1", "--queue", "1", "--patience", "0.5")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(server.ask(max_tokens=3900))) for _ in range(8)]
    for thread in threads:
        thread.start()
    # one runs, one waits before it and one before all replicas, but Ray counts with some delay
    wait_until(lambda: found and sum(metric(server, "namm_active").values()) == 1)
    refused = list(found)
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} == {(429, "queue_full")}
    assert all(answer.headers["Retry-After"] for answer in refused)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    codes = {own.json().get("error", {"code": "answered"})["code"] for own in found if own not in refused}
    assert "stopping" in codes and codes <= {"stopping", "queue_full", "answered"}
    assert server.process.wait(PATIENCE) == 0
