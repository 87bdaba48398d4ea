"""`namm serve` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil
from served import PATIENCE

import namm

OPTIONS = ("--port", "0", "--kept", "0.5", "--bits", "4", "--dtype", "float32", "--device", "cpu", "--name", "tiny")
HEADERS = {"Authorization": "Bearer secret"}


class Process:
    """The command, in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(namm.__file__).parents[1]), "NAMM_API_KEY": "secret"}
        command = [sys.executable, "-m", "namm", "serve", *arguments, *OPTIONS]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = next(line for line in self.process.stdout if "is served at" in line).split()[-1]

    def call(self, method: str, path: str, **options: Any) -> Any:
        return httpx2.request(method, self.url + path, timeout=PATIENCE, headers=HEADERS, **options)

    def ask(self, **more: Any) -> Any:
        return self.call("POST", "/v1/completions", json={"model": "tiny", "prompt": "Why?", "temperature": 0} | more)

    def read(self, text: str) -> str:
        answer = self.call("POST", "/v1/documents", json={"text": text, "raw": True})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def replicas(self) -> list[psutil.Process]:
        """Those that are ready, and are processes of this machine."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [own for own in below if "ServeReplica:namm:Replica" in name_of(own)]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
