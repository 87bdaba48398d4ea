from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import KEPT, Served

from namm import load_model
from namm.serving.documents import Documents
from namm.serving.engine import Engine
from namm.serving.settings import Settings

CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def loaded(reader_folder: Path) -> tuple[Any, Any]:
    """The random model and its tokenizer, with a chat template."""
    model, tokenizer = load_model(str(reader_folder), dtype="float32", device="cpu")
    tokenizer.chat_template = CHAT
    return model, tokenizer


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
