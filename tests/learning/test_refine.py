from __future__ import annotations

import copy
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from refined import middling, passages

import namm.learning.refine.probe
import namm.learning.refine.run
from namm import NAMM, NAMMConfig
from namm.learning import Passage, RefineConfig, refine_memory
from namm.learning.refine.run import run_rounds
from namm.policies import NAMMPolicy
from namm.support.runs import Progress
from namm.tasks import Document

SETTINGS = RefineConfig(bounds=(300.0, 100.0), steps=120, batch=3, scored=20, fractions=(0.2, 0.6))


def dealt(count: int = 4, tokens: int = 96, models: int = 1) -> list[list[tuple[int, Passage]]]:
    every = [(place, passage) for passage in passages(count, tokens) for place in range(models)]
    half = len(every) // 2
    return [every[:half], every[half:]]


class Stop(Exception):
    pass


def test_refining_resumes_to_the_same_parameters(reader, characters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(namm.learning.refine.probe, "SINK", 0.5)  # of 32 tokens each is paid a lot
    start = middling(-6.0)
    whole = run_rounds([(reader, characters)], start, dealt(), SETTINGS, tmp_path / "a")
    assert not torch.equal(whole.flat, start.flat)

    def stop(now: Progress) -> None:
        if (now.stage, now.done) == ("learning (2 of 2)", 110):
            raise Stop

    with pytest.raises(Stop):
        run_rounds([(reader, characters)], start, dealt(), SETTINGS, tmp_path / "b", stop)
    monkeypatch.setattr(namm.learning.refine.run, "run_probe", None)  # nothing is read again
    seen: list[Progress] = []
    again = run_rounds([(reader, characters)], start, dealt(), SETTINGS, tmp_path / "b", seen.append)
    learned = [(now.stage, now.done) for now in seen if now.stage != "reading"]
    assert learned == [("learning (2 of 2)", step) for step in range(101, 121)]
    assert [(now.done, now.total) for now in seen if now.stage == "reading"] == [(n, 4) for n in range(1, 5)]
    assert torch.equal(again.flat, whole.flat)


@pytest.mark.fault("A5", siblings="the attention implementation was set for good; flags were lost after an error too")
@pytest.mark.parametrize("fails", [False, True])
def test_refining_gives_the_model_back_as_it_was(
    reader, characters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    model = copy.deepcopy(reader)
    model.set_attn_implementation("eager")
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert True in before.values() and False in before.values()
    if fails:
        monkeypatch.setattr(NAMMPolicy, "choose", None)
        with pytest.raises(TypeError):
            run_rounds([(model, characters)], middling(-6.0), dealt(), SETTINGS, tmp_path)
    else:
        monkeypatch.setattr(namm.learning.refine.probe, "SINK", 0.5)
        run_rounds([(model, characters)], middling(-6.0), dealt(), SETTINGS, tmp_path)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert model.config._attn_implementation == "eager"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rounds_without_passages_and_short_passages_are_refused(reader, characters, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each of 2 rounds needs a passage"):
        run_rounds([(reader, characters)], middling(), [dealt(2)[0], []], SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="a passage needs 3 update intervals of 32 tokens"):
        run_rounds([(reader, characters)], middling(), dealt(tokens=80), SETTINGS, tmp_path)


SOURCES = [[Document(name, "Whose woods these are I think I know. " * 40, "prose")] for name in "ab"]


def test_every_round_reads_every_source(reader, characters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rounds divide the number of sources."""
    read: list[list[str]] = []

    def rounds(models, memory, passages, *rest):
        read.extend([passage.name for _, passage in own] for own in passages)
        raise Stop

    monkeypatch.setattr(namm.learning.refine.run, "run_rounds", rounds)
    config = NAMMConfig(update_interval=32, hidden=8, ema=(0.9,))
    arguments = {"lengths": [64], "documents": 8, "settings": SETTINGS}
    with pytest.raises(Stop):
        refine_memory([(reader, characters)], NAMM(config), SOURCES, tmp_path, **arguments)
    assert [sorted(names) for names in read] == [["a", "a", "b", "b"]] * 2


@pytest.mark.fault("A8", siblings="distilling saves a card as well")
def test_a_refined_memory_says_what_it_was_made_from(reader, characters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(namm.learning.refine.probe, "SINK", 0.5)
    arguments = {"lengths": [128], "documents": 8, "settings": SETTINGS}
    found = refine_memory([(reader, characters)], middling(-6.0), SOURCES, tmp_path, **arguments)
    assert NAMM.from_pretrained(tmp_path).config == found.config
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# A refined memory" in card and type(reader).__name__ in card and "bounds=(300.0, 100.0)" in card
    assert json.loads((tmp_path / "run.json").read_text())["run"] == "refinement"


def test_several_models_are_read_with(reader, characters, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(namm.learning.refine.probe, "SINK", 0.5)
    other = copy.deepcopy(reader)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    models = [(reader, characters), (other, characters)]
    read: list[Any] = []
    probe = namm.learning.refine.run.run_probe
    monkeypatch.setattr(namm.learning.refine.run, "run_probe", lambda m, *a, **k: read.append(m) or probe(m, *a, **k))
    both = run_rounds(models, middling(-6.0), dealt(models=2), SETTINGS, tmp_path / "both")
    assert [model is other for model in read] == [False, True] * 4
    alone = run_rounds(models[:1], middling(-6.0), dealt(), SETTINGS, tmp_path / "alone")
    assert not torch.equal(both.flat, alone.flat)
    with pytest.raises(ValueError, match="needs a passage of each model"):
        run_rounds(models, middling(), dealt(), SETTINGS, tmp_path / "none")


def test_no_sources_are_refused(reader, characters, tmp_path: Path) -> None:
    arguments = {"lengths": [96], "documents": 4, "settings": SETTINGS}
    with pytest.raises(ValueError, match="at least one source"):
        refine_memory([(reader, characters)], middling(), [], tmp_path, **arguments)


def test_no_exported_name_hides_a_module() -> None:
    """As `refine` would: ``import namm.learning.refine.run as run`` would find a function."""
    assert not {module.name for module in pkgutil.iter_modules(namm.learning.__path__)} & set(namm.learning.__all__)


def test_other_passages_are_other_work(reader, characters, tmp_path: Path) -> None:
    """Fingerprints see every token, and which round reads it."""

    def stop(now: Progress) -> None:
        raise Stop

    arguments = {"lengths": [96], "documents": 4, "progress": stop}
    with pytest.raises(Stop):
        refine_memory([(reader, characters)], middling(-6.0), SOURCES, tmp_path, settings=SETTINGS, **arguments)
    other = [[Document(name, "whose woods these are I think I know. " * 40, "prose")] for name in "ab"]
    with pytest.raises(ValueError, match="which differs in: passages;"):
        refine_memory([(reader, characters)], middling(-6.0), other, tmp_path, settings=SETTINGS, **arguments)
