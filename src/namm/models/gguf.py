"""Converted copies of GGUF files: unpacked by transformers once, kept in a cache folder, checked on every load."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from namm.models.gguf_head import check_head

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# transformers patches its own classes while it loads, so that two threads loading at once leave later models broken.
LOADING = threading.Lock()


@contextmanager
def converted(name: str, pieces: Sequence[Path], dtype: torch.dtype, sha256: str | None = None) -> Iterator[Path]:
    """A folder with the converted copy: kept in the cache, or passing if the cache cannot be written.

    Args:
        name: of an embedded model, or the file's path. pieces: the file's, in order.
        sha256: what the file must have, in hexadecimal.

    Raises:
        ValueError: for another file than that of the `sha256`.
    """
    digest = _digest(*pieces)
    if sha256 not in (None, digest):
        raise ValueError(f"The file of '{name}' is not the one it should be (SHA-256 {digest}): install it anew.")
    version = transformers.__version__.partition(".")[0]
    stem = Path(name).name.removesuffix(".gguf")
    copy = _cache_folder() / "models" / f"{stem}-{str(dtype)[6:]}-transformers{version}-{digest[:16]}"
    with tempfile.TemporaryDirectory(prefix="namm-", ignore_cleanup_errors=True) as passing:
        try:
            _ensure_copy(copy, pieces, dtype)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"The converted copy of '{name}' cannot be kept in {copy.parent} ({first_line(error)}), so every "
                "load converts it again; set NAMM_CACHE to a folder that can be written.",
                stacklevel=6,
            )
            copy = Path(passing)
            _convert(pieces, dtype, copy)
        yield copy


def _ensure_copy(copy: Path, pieces: Sequence[Path], dtype: torch.dtype) -> None:
    """Make sure that `copy` is there and intact; safe against other processes doing the same."""
    if _is_intact(copy):
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{copy.name}.lock")):
        if _is_intact(copy):  # another process was first
            return
        logger.info("converting %s to %s", pieces[0].name, copy)
        partial = copy.with_name(f"{copy.name}.partial")
        for leftover in (partial, copy):
            shutil.rmtree(leftover, ignore_errors=True)
        _convert(pieces, dtype, partial)
        digests = {file.name: _digest(file) for file in partial.iterdir()}
        (partial / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        os.replace(partial, copy)


def _convert(pieces: Sequence[Path], dtype: torch.dtype, folder: Path) -> None:
    """Write the GGUF model as a plain transformers model with weights of `dtype`, and its tokenizer, to `folder`."""
    with _joined(pieces) as path:
        try:
            check_head(path)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            # Without dequantize some quantisation types stay packed and compute in float32.
            unpack = GgufConfig(dequantize=True)
            model = load_weights(path.parent, dtype, {"gguf_file": path.name, "quantization_config": unpack})
        except Exception as error:  # what a reader stumbles over in a damaged file may be anything
            raise ValueError(
                f"{pieces[0]} cannot be read as a GGUF model: it is damaged, or of an architecture that transformers "
                f"{transformers.__version__} does not know ({first_line(error)})."
            ) from error
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _joined(pieces: Sequence[Path]) -> Iterator[Path]:
    """The one file that the pieces make up."""
    if len(pieces) == 1:
        yield pieces[0]
        return
    with tempfile.TemporaryDirectory(prefix="namm-") as folder:
        whole = Path(folder, "model.gguf")
        with whole.open("wb") as target:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, target)
        yield whole


def _is_intact(copy: Path) -> bool:
    """Whether every file of a converted copy is what was written."""
    try:
        digests = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(copy / file) == digest for file, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(*files: Path) -> str:
    """SHA-256 of the files' joined content, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def _cache_folder() -> Path:
    if own := os.environ.get("NAMM_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "namm"


def load_weights(source: str | Path, dtype: torch.dtype | str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """A causal language model by transformers, one load at a time."""
    with LOADING:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **kwargs)


def first_line(error: Exception) -> str:
    """Of an error's message, which may go on for pages."""
    return str(error).strip().partition("\n")[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars away from work that takes a second."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
