"""What long runs share: whose folder it is, fingerprints, progress, files that are whole or old."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Progress:
    """What is being done, how much of it is done and how much there is, and a note."""

    stage: str
    done: int
    total: int
    note: str = ""


def claim(work: Path, settings: dict[str, object]) -> None:
    """The folder belongs to one set of arguments: recordings of others would be taken for its own.

    Raises:
        ValueError: if it holds the work of others.
    """
    work.mkdir(parents=True, exist_ok=True)
    file, wanted = work / "settings.json", json.dumps(settings, indent=1)
    if file.exists() and file.read_text() != wanted:
        raise ValueError(
            f"{work} holds the work of another distillation (other texts or settings): "
            "choose another folder, or delete it"
        )
    partial = file.with_suffix(".partial")
    partial.write_text(wanted)
    os.replace(partial, file)


def identify(model: nn.Module) -> str:
    """A model's class and a fingerprint of its weights, from a few values of every parameter."""
    seen = hashlib.sha256()
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:: max(1, parameter.numel() // 8)][:8].float().cpu()
        seen.update(f"{name} {tuple(parameter.shape)} {some.tolist()}".encode())
    return f"{type(model).__name__} {seen.hexdigest()[:16]}"


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()[:16]


def save_atomically(value: object, path: Path) -> None:
    """``torch.save`` that leaves the old file or the whole new one, whenever it is interrupted."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)
