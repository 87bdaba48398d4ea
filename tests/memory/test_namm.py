from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from namm import NAMM, MemoryFileError, NAMMConfig
from namm.memory import shipped_memories
from namm.memory.files import CONFIG_FILE, WEIGHTS_FILE

CONFIG = NAMMConfig(hidden=16, heads=2, update_interval=64, ema=(0.99, 0.999), compression="log", normalised=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    memory = NAMM(CONFIG, torch.randn(CONFIG.parameters), torch.randn(34), torch.rand(34))
    memory.save_pretrained(tmp_path / "memory", card="# A card\n")
    return tmp_path / "memory"


def test_the_reference_configuration_has_4172_parameters() -> None:
    assert NAMMConfig().parameters == 4172 and NAMMConfig().features == 25


def test_saving_and_loading_is_exact(saved: Path) -> None:
    first, second = NAMM.from_pretrained(saved), NAMM.from_pretrained(str(saved))
    assert first.config == CONFIG
    assert torch.equal(first.flat, second.flat)
    features = torch.randn(9, CONFIG.features)
    assert torch.equal(first.scores(features), second.scores(features))
    first.save_pretrained(saved.parent / "again")
    assert (saved.parent / "again" / WEIGHTS_FILE).read_bytes() == (saved / WEIGHTS_FILE).read_bytes()
    assert (saved / "README.md").read_text() == "# A card\n"


class PowerCut(Exception):
    pass


@pytest.mark.fault("B14", siblings="the model card; claims, checkpoints and recordings, which were not synced to disk")
@pytest.mark.parametrize("done", range(4))
def test_a_power_cut_leaves_the_old_memory_or_the_new_one(saved: Path, monkeypatch: pytest.MonkeyPatch, done) -> None:
    """Files are replaced one after the other; whichever was the last, weights and configuration belong together."""
    old, new = (
        NAMM.from_pretrained(saved),
        NAMM(replace(CONFIG, kept=0.5, ema=(0.5, 0.6)), torch.ones(CONFIG.parameters)),
    )
    replaced: list[str] = []
    whole = os.replace

    def cut(source: Path, target: Path) -> None:
        if len(replaced) == done:
            raise PowerCut
        replaced.append(Path(target).name)
        whole(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with contextlib.suppress(PowerCut):
        new.save_pretrained(saved, card="# Another\n")
    assert len(replaced) == done
    wanted = new if WEIGHTS_FILE in replaced else old
    found = NAMM.from_pretrained(saved)
    assert found.config == wanted.config and torch.equal(found.flat, wanted.flat)
    monkeypatch.undo()
    new.save_pretrained(saved)
    assert NAMM.from_pretrained(saved).config == new.config
    assert {file.name for file in saved.iterdir()} - {"README.md.partial"} == {WEIGHTS_FILE, CONFIG_FILE, "README.md"}


def test_a_save_that_fails_leaves_the_old_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = NAMM.from_pretrained(saved)

    def full(file: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        NAMM(CONFIG).save_pretrained(saved)
    assert torch.equal(NAMM.from_pretrained(saved).flat, old.flat)


@pytest.mark.fault("B14", siblings="files copied from two places, and a configuration that was edited")
def test_a_configuration_of_other_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    NAMM(replace(CONFIG, update_interval=128), torch.ones(CONFIG.parameters)).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / CONFIG_FILE, saved)
    with pytest.raises(MemoryFileError, match=r"not the configuration that model\.safetensors was saved with"):
        NAMM.from_pretrained(saved)
    (saved / CONFIG_FILE).unlink()
    with pytest.raises(MemoryFileError, match="config.json is missing"):
        NAMM.from_pretrained(saved)


def test_flat_parameters_are_a_copy_and_load_back() -> None:
    memory = NAMM()
    vector = memory.flat_parameters()
    vector[0] = 7
    assert memory.flat[0] != 7
    memory.load_flat_parameters(vector)
    assert memory.flat_parameters()[0] == 7


@pytest.mark.parametrize("vector", [torch.zeros(10), torch.full((4172,), torch.nan)])
def test_bad_vectors_are_refused_and_change_nothing(vector: torch.Tensor) -> None:
    memory = NAMM()
    before = memory.flat_parameters()
    with pytest.raises(ValueError):
        memory.load_flat_parameters(vector)
    assert torch.equal(memory.flat, before)


def test_a_truncated_weights_file_is_named(saved: Path) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MemoryFileError, match=r"model\.safetensors is missing or damaged"):
        NAMM.from_pretrained(saved)
    path.unlink()
    with pytest.raises(MemoryFileError, match="missing or damaged"):
        NAMM.from_pretrained(saved)


def _edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | values))


def test_shapes_that_disagree_with_the_configuration_are_named(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    save_file(tensors, saved / WEIGHTS_FILE)  # as older versions did, without the configuration
    assert NAMM.from_pretrained(saved).config == CONFIG
    _edit(saved, hidden=32)
    with pytest.raises(MemoryFileError, match=r"'attention.qkv.weight' has shape \(42, 48\).*asks for \(42, 96\)"):
        NAMM.from_pretrained(saved)


def test_a_misspelt_key_and_a_broken_file_are_named(saved: Path) -> None:
    _edit(saved, hiden=16)
    with pytest.raises(MemoryFileError, match="unknown keys.*hiden"):
        NAMM.from_pretrained(saved)
    for broken in ("{", "", "[]"):
        (saved / CONFIG_FILE).write_text(broken)
        with pytest.raises(MemoryFileError, match="config.json is no memory configuration"):
            NAMM.from_pretrained(saved)


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(MemoryFileError, match=f"one of.*{'.*'.join(shipped_memories())}"):
        NAMM.from_pretrained("no-such-memory")


@pytest.mark.parametrize(
    "values",
    [
        {"heads": 5},
        {"update_interval": 100},
        {"update_interval": 0},
        {"state_dtype": "int8"},
        {"compression": "sqrt"},
        {"window": 64, "hop": 16, "update_interval": 32},
        {"kept": 0.0},
        {"kept": 1.5},
        {"kept": math.nan},
    ],
)
def test_bad_configurations_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        NAMMConfig(**values)  # type: ignore[arg-type]


def test_broken_normalisation_in_a_file_is_refused(tmp_path) -> None:
    memory = NAMM(NAMMConfig(normalised=True))
    memory.variance = -memory.variance
    memory.save_pretrained(tmp_path)
    with pytest.raises(MemoryFileError, match="variances not negative"):
        NAMM.from_pretrained(tmp_path)
