from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from namm import NAMM, NAMMConfig
from namm.learning import RefineConfig, improve
from namm.tasks import Document

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9,), calibration=((0.1, 32, 0.0), (0.6, 32, 0.0)))


def test_every_round_reads_every_source(reader, characters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rounds divide the number of sources."""
    read: list[tuple[str, int]] = []

    class Enough(Exception):
        pass

    def refine(model, tokenizer, memory, passages, settings, work, *, turns, **rest):
        read.extend((passage.name, turn) for passage, turn in zip(passages, turns, strict=True))
        raise Enough

    monkeypatch.setattr(importlib.import_module("namm.learning.refine.run"), "refine", refine)
    sources = [[Document(name, "Whose woods these are I think I know. " * 40, "prose")] for name in "ab"]
    settings = RefineConfig(bounds=(300.0, 100.0))
    with pytest.raises(Enough):
        improve(reader, characters, NAMM(CONFIG), sources, tmp_path, lengths=[64], documents=8, settings=settings)
    assert {turn for name, turn in read if name == "a"} == {turn for name, turn in read if name == "b"} == {0, 1}
    assert len(read) == 8
