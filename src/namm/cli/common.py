"""What the commands share: loading, reading, and a policy from its options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from namm.cli.console import errors
from namm.cli.options import DEFAULT_MODEL, Dtype
from namm.cli.progress import waiting

if TYPE_CHECKING:
    from namm.learning import Teacher
    from namm.memory import NAMM
    from namm.policies import Policy
    from namm.tasks import Document

STORY = "island"  # of the packaged prose, what is asked about where no file is named


def load(model: str, dtype: Dtype, device: str | None) -> tuple[Any, Any]:
    """Model and tokenizer, see `namm.load_model`; untyped, as transformers' own annotations lack `generate`.

    Raises:
        ValueError: also for a device that this machine lacks, before anything is loaded.
    """
    with waiting(f"loading {model}"):
        if device is not None:
            _check_device(device)
        from transformers.utils import logging

        from namm.models import load_model

        if not errors.is_terminal:
            logging.disable_progress_bar()
        return load_model(model, dtype=dtype.value, device=device)


def _check_device(device: str) -> None:
    from namm.models.precision import usable_device

    try:
        found = usable_device(device)
    except ValueError as error:
        raise ValueError(f"{error}; --device cpu always works") from None
    if found.type == "meta":
        raise ValueError("the device 'meta' holds no numbers; --device cpu always works")


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        ValueError: if it is no file, not UTF-8, or holds nothing but blanks.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


def check_writable(folder: Path) -> None:
    """Make the folder if need be; ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"can't write to {folder}: {error.strerror or error}") from None


def packaged_story() -> Document:
    """The short text that the commands ask about by default."""
    from namm.tasks import packaged_prose

    return packaged_prose(STORY)[0]


def policy_from(
    name: str,
    memory: NAMM,
    *,
    kept: float | None = None,
    offset: float | None = None,
    budget: float | None = None,
    rehearse: bool = False,
) -> Policy:
    """A policy from a command's options.

    Raises:
        ValueError: for an option that the policy does not take, or more than one of those that say how much is kept.
    """
    from namm.policies import NAMMPolicy
    from namm.policies.names import budget_of, check_policies, make_policy

    check_policies([name])
    if name != "namm" and (kept is not None or offset is not None):
        raise ValueError(f"--kept and --offset are the memory's; {name!r} takes --budget")
    if name == "full" and budget is not None:
        raise ValueError("'full' keeps everything; it does not take one (--budget)")
    if name != "namm":
        return make_policy(name, 0.25 if budget is None else budget, memory)
    tokens = None if budget is None else budget_of(budget)
    if isinstance(tokens, float):
        raise ValueError("--budget is a number of tokens for namm; as a fraction give --kept")
    return NAMMPolicy(memory, offset, kept, tokens, rehearsed=rehearse)


def load_models(names: Sequence[str] | None, dtype: Dtype, device: str | None) -> list[Teacher]:
    """The models to learn from, each with its tokenizer; the default one if none is named."""
    return [load(name, dtype, device) for name in names or [DEFAULT_MODEL]]


def sources_of(text: Sequence[Path] | None, train_split: bool, library: bool) -> list[list[Document]]:
    """Documents to learn from, by where they come from."""
    from namm.tasks import read_documents, split_documents, standard_library_documents

    sources = [read_documents(path) for path in text or ()]
    if train_split:
        sources = [split_documents(source, seed=0)["train"] for source in sources]
    if library or not text:
        sources.append(split_documents(standard_library_documents(), seed=0)["train"])  # the rest is for evaluation
    return sources


Number = TypeVar("Number", int, float)


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Finite numbers from a text with commas between them."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{option} takes numbers separated by commas, not {text!r}")
    return found
