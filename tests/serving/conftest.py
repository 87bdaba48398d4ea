from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from commanded import Process
from served import KEPT, Address, Served
from transformers import LlamaForCausalLM

from namm import NAMM, NAMMConfig, load_model
from namm.serving.app import create_app
from namm.serving.documents import Documents
from namm.serving.engine import Engine
from namm.serving.settings import Settings

CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def model_folder(reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes with a chat template, and a model whose weights are so large that all it read matters."""
    reader, tokenizer = load_model(str(reader_folder), dtype="float32", device="cpu")
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = copy.deepcopy(reader.config)
    config.initializer_range = 0.3
    folder = tmp_path_factory.mktemp("served")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    """Both of them."""
    return load_model(str(model_folder), dtype="float32", device="cpu")


@pytest.fixture
def start(loaded: tuple[Any, Any], tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts engines, which end with the test."""
    running: list[Engine] = []

    def begin(policy: Any = KEPT, bits: int | None = None, folder: Path | None = None, **limits: Any) -> Served:
        documents = Documents(folder or tmp_path / f"documents-{len(running)}", *loaded)
        engine = Engine(loaded[0], policy, documents, Settings(**{"piece": 24} | limits), bits)
        running.append(engine)
        return Served(engine, *loaded)

    yield begin
    for engine in running:
        engine.close()


@pytest.fixture
def serve(loaded: tuple[Any, Any], tmp_path: Path) -> Iterator[Callable[..., Address]]:
    """Starts servers, each in a thread, which end with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(policy: Any = KEPT, folder: Path | None = None, **limits: Any) -> Address:
        documents = Documents(folder or tmp_path / f"served-{len(running)}", *loaded)
        app = create_app(*loaded, policy, documents, Settings(**{"piece": 24} | limits), name="tiny")
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        return Address(f"http://127.0.0.1:{port}", app, *loaded)

    yield begin
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def command(model_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts the command with one folder of documents; what runs is killed at the end of the test."""
    NAMM(NAMMConfig(update_interval=32)).save_pretrained(tmp_path / "memory")
    running: list[Process] = []

    def begin(*more: str) -> Process:
        memory, folder = str(tmp_path / "memory"), str(tmp_path / "documents")
        running.append(Process("--model", str(model_folder), "--memory", memory, "--folder", folder, *more))
        return running[-1]

    yield begin
    for own in running:
        own.process.kill()
        own.process.wait()
