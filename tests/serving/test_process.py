"""The command itself: killed and started again, and ended as a service is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served import PATIENCE, wait_until
from typer.testing import CliRunner

import namm
from namm import NAMM, NAMMConfig
from namm.cli import app

TEXT = "To be, or not to be, that is the question. " * 5
OPTIONS = ("--port", "0", "--kept", "0.5", "--bits", "4", "--dtype", "float32", "--device", "cpu", "--name", "tiny")


class Process:
    """The command, in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(namm.__file__).parents[1]), "NAMM_API_KEY": "secret"}
        command = [sys.executable, "-m", "namm", "serve", *arguments, *OPTIONS]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = next(line for line in self.process.stdout if "is served at" in line).split()[-1]

    def call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": "Bearer secret"}
        return httpx2.request(method, self.url + path, timeout=PATIENCE, headers=headers, **options)

    def ask(self, **more: Any) -> Any:
        return self.call("POST", "/v1/completions", json={"model": "tiny", "prompt": "Why?", "temperature": 0} | more)


@pytest.fixture
def command(model_folder: Path, tmp_path: Path) -> Iterator[Any]:
    NAMM(NAMMConfig(update_interval=32)).save_pretrained(tmp_path / "memory")
    running: list[Process] = []

    def begin() -> Process:
        memory, folder = str(tmp_path / "memory"), str(tmp_path / "documents")
        running.append(Process("--model", str(model_folder), "--memory", memory, "--folder", folder))
        return running[-1]

    yield begin
    for own in running:
        own.process.kill()
        own.process.wait()


def test_a_killed_server_loses_no_document_and_one_that_is_ended_no_answer(command) -> None:
    first = command()
    assert httpx2.get(f"{first.url}/v1/models").status_code == 401
    document = first.call("POST", "/v1/documents", json={"text": TEXT, "raw": True}).json()["id"]
    asked = {"document": document, "max_tokens": 20}
    answer = first.ask(**asked).json()["choices"]
    card = first.call("GET", f"/v1/documents/{document}").json()

    outcomes: list[Any] = []

    def load() -> None:
        try:
            outcomes.append(first.ask(max_tokens=3000).status_code)
        except httpx2.TransportError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: "namm_active 3.0" in first.call("GET", "/metrics").text)
    first.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(outcomes) == 3 and not any(isinstance(outcome, int) for outcome in outcomes), "a clean error"

    second = command()
    assert second.call("GET", "/v1/documents").json()["data"] == [card]
    assert second.ask(**asked).json()["choices"] == answer

    later: list[Any] = []
    thread = threading.Thread(target=lambda: later.append(second.ask(max_tokens=1500)))
    thread.start()
    wait_until(lambda: "namm_active 1.0" in second.call("GET", "/metrics").text)
    second.process.send_signal(signal.SIGTERM)
    wait_until(lambda: second.process.poll() is not None or second.call("GET", "/health").status_code == 503)
    thread.join(PATIENCE)
    assert later[0].status_code == 200 and later[0].json()["usage"]["completion_tokens"] > 20
    assert second.process.wait(PATIENCE) == 0


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code != 0
    return " ".join(result.stderr.split())


def test_what_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = ("--folder", tmp_path / "documents")
    assert "write it as 512MiB" in refused(*folder, "--cache-bytes", "much")
    assert "an API key is empty" in refused(*folder, "--api-key", "")
    assert "--folder" in refused()
    assert "needs a rehearsal" in refused(*folder, "--policy", "kvzip")
    assert "does not look at a rehearsal" in refused(*folder, "--policy", "h2o", "--rehearse")
    (tmp_path / "file").write_text("")
    assert "can't write to" in refused("--folder", tmp_path / "file")


def test_an_address_that_is_taken(model_folder: Path, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--folder", tmp_path / "documents", "--port", port, "--dtype", "float32", "--device", "cpu")
        assert "name another --host or --port" in refused("--model", model_folder, *options)
