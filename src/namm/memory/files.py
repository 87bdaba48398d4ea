"""Where memories lie on disk and on the hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
CONFIG_KEY = "namm"  # of the weights' metadata: the configuration they were saved with


class MemoryFileError(OSError):
    """A saved memory is missing, damaged or disagrees with its own configuration."""


def shipped_memories() -> list[str]:
    """Names of the memories inside the package."""
    folder = resources.files("namm") / "memories"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def find_memory(name: str | Path) -> Path:
    """The folder that holds the memory `name`: a folder, a shipped name, or a hub id (downloaded)."""
    if (path := Path(name).expanduser()).is_dir():
        return path
    if str(name) in shipped_memories():
        return Path(str(resources.files("namm") / "memories" / str(name)))
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(name), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
        except Exception as error:  # the hub raises many kinds; the user needs one sentence
            raise MemoryFileError(f"could not get the memory {name!r} from the Hugging Face hub: {error}") from error
    raise MemoryFileError(
        f"no memory {str(name)!r}: give a folder, a hub id (owner/name), or one of {', '.join(shipped_memories())}"
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the configuration that they were saved with (None in files that carry none)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            saved = (file.metadata() or {}).get(CONFIG_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, saved  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"{path} is missing or damaged ({error}); copy or download it again") from error
