from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import namm.cli.common
from namm import NAMM, NAMMConfig, load_model


@pytest.fixture
def memory(tmp_path: Path) -> str:
    config = NAMMConfig(update_interval=32, kept=0.5)
    NAMM(config).save_pretrained(tmp_path / "memory")
    return str(tmp_path / "memory")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, reader, characters) -> None:
    """Every command gets the random model that reads characters."""
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: (reader, characters))


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 10)
    return path


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, reader_folder: Path) -> PreTrainedTokenizerBase:
    """Every command gets the random model, and a tokenizer with a chat template, which is given."""
    model, tokenizer = load_model(str(reader_folder), dtype="float32", device="cpu")
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}<assistant>"
    monkeypatch.setattr(namm.cli.common, "load", lambda *arguments: (model, tokenizer))
    return tokenizer
