"""The readers of files that others may have written, each as a function of a file's bytes, and files that they take."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from namm import NAMM, NAMMConfig
from namm.evolution.config import presets
from namm.evolution.config import read_config as read_evolution
from namm.memory.files import CONFIG_FILE, WEIGHTS_FILE
from namm.models.gguf_head import check_head
from namm.planning import read_config as read_model_config
from namm.support.files import load_saved, read_json, save_atomically
from namm.support.journal import BEGINNING, Journal
from namm.tasks.longbench import longbench_rows

# What a reader may raise; the command line makes one sentence of it.
OURS = (ValueError, OSError)


@contextmanager
def only_ours(file: Path, content: bytes) -> Iterator[None]:
    """Lets a reader raise nothing but `OURS` with the file's name in it, and leaves the file as it was."""
    try:
        yield
    except OURS as error:
        assert file.name in str(error), f"{type(error).__name__} does not name the file: {error}"
    assert file.read_bytes() == content, "the file was written over"
    assert {other.name for other in file.parent.iterdir()} <= {file.name, WEIGHTS_FILE, CONFIG_FILE}, "files were added"


def _folder() -> tempfile.TemporaryDirectory[str]:
    # in memory where that can be had: a fuzzer writes thousands of files a second
    return tempfile.TemporaryDirectory(prefix="namm-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _read(content: bytes, name: str, reader: Callable[[Path], object], beside: dict[str, bytes] | None = None) -> None:
    with _folder() as folder:
        file = Path(folder, name)
        for other, bytes_ in (beside or {}).items():
            file.with_name(other).write_bytes(bytes_)
        file.write_bytes(content)
        with only_ours(file, content):
            reader(file)


def _saved_memory() -> dict[str, bytes]:
    with _folder() as folder:
        NAMM(NAMMConfig(hidden=4)).save_pretrained(folder)
        return {name: Path(folder, name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}


def _saved_state() -> bytes:
    with _folder() as folder:
        save_atomically({"flat": torch.zeros(3), "step": 1}, Path(folder, "a.ckpt"))
        return Path(folder, "a.ckpt").read_bytes()


MEMORY = _saved_memory()


def memory_config(content: bytes) -> None:
    """``config.json`` beside weights that are as they should be."""
    _read(content, CONFIG_FILE, lambda file: NAMM.from_pretrained(file.parent), {WEIGHTS_FILE: MEMORY[WEIGHTS_FILE]})


def memory_weights(content: bytes) -> None:
    """``model.safetensors`` beside a configuration that is as it should be."""
    _read(content, WEIGHTS_FILE, lambda file: NAMM.from_pretrained(file.parent), {CONFIG_FILE: MEMORY[CONFIG_FILE]})


def evolution_toml(content: bytes) -> None:
    """The TOML of an evolution."""
    _read(content, "evolution.toml", read_evolution)


def task_rows(content: bytes) -> None:
    """JSON lines of a task in the format of LongBench."""
    _read(content, "rows.jsonl", lambda file: list(longbench_rows(str(file))))


def json_file(content: bytes) -> None:
    """What an earlier run left."""
    _read(content, "settings.json", read_json)


def saved_state(content: bytes) -> None:
    """A checkpoint or a recording."""
    _read(content, "state.ckpt", load_saved)


def gguf_head(content: bytes) -> None:
    """The head of a GGUF file, which `load_model` names in what it says."""

    def check(file: Path) -> None:
        try:
            check_head(file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    _read(content, "model.gguf", check)


def model_config(content: bytes) -> None:
    """A model's configuration, for planning."""
    _read(content, "model.json", read_model_config)


def journal(content: bytes) -> None:
    """A journal is cut where a kill tore its last line; all else stays, and what is added can be read again."""
    with _folder() as folder:
        file = Path(folder, "results.jsonl")
        file.write_bytes(content)
        try:
            with Journal(file) as found:
                left = file.read_bytes()
                torn = content[len(left) :]
                assert content.startswith(left) and b"\n" not in torn
                assert not torn or torn.startswith(BEGINNING) or BEGINNING.startswith(torn)
                rows = dict(found.rows)
                rows["another"] = found.add("another", {"score": 0.5})
        except ValueError as error:
            assert file.name in str(error)
            assert file.read_bytes() == content, "a file of somebody else was touched"
            return
        with Journal(file) as again:
            assert again.rows.keys() == rows.keys()
        assert file.read_bytes().startswith(left)


def _gguf() -> bytes:
    value = struct.pack("<Q17sII", 17, b"general.alignment", 4, 32)
    array = struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2) + 2 * struct.pack("<Q3s", 3, b"one")
    tensor = struct.pack("<Q1sIQQIQ", 1, b"t", 2, 4, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + value + array + tensor
    return head + bytes(-len(head) % 32) + bytes(32)


def _preset(name: str) -> bytes:
    import namm.evolution

    return Path(namm.evolution.__file__).with_name("presets").joinpath(f"{name}.toml").read_bytes()


# name: the reader, and files that it takes
READERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "memory-config": (memory_config, [MEMORY[CONFIG_FILE]]),
    "memory-weights": (memory_weights, [MEMORY[WEIGHTS_FILE]]),
    "evolution": (evolution_toml, [_preset(name) for name in presets()]),
    "rows": (
        task_rows,
        [
            json.dumps({"context": "It is 7.", "input": "What?", "answers": ["7"], "all_classes": ["7", "8"]}).encode(),
            b'{"context": "a", "answer": "b"}\n\n{"context": "a", "outputs": ["b", 3]}\n',
        ],
    ),
    "journal": (journal, [b'{"key": "a", "score": 0.5}\n{"key": "b", "score": null}\n{"key": "c", "sco']),
    "json": (json_file, [b'{"model": "a", "settings": [1, 2]}']),
    "state": (saved_state, [_saved_state()]),
    "gguf": (gguf_head, [_gguf()]),
    "model-config": (model_config, [b'{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64}']),
}
