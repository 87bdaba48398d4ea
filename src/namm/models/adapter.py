"""Adapters in peft's format: a folder beside its base model's weights, which it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.models.gguf import quiet
from namm.support.extras import need
from namm.support.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


def load_adapted(folder: Path, load_base: Callable[[str], Loaded]) -> Loaded:
    """The base model that an adapter names, with the adapter in it, and the base model's tokenizer.

    Args:
        load_base: of the name of a model.

    Raises:
        ValueError: if the adapter names no base, or an adapter as its base.
        ImportError: if peft is not installed.
    """
    need("peft", "tune")
    described: Any = read_json(folder / CONFIG_FILE)
    base = described.get("base_model_name_or_path") if isinstance(described, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / CONFIG_FILE} names no base model ('base_model_name_or_path'): write it there")
    if is_adapter(Path(base).expanduser()):
        raise ValueError(f"the adapter {folder} names another adapter, {base}, as its base: merge that one first")
    model, tokenizer = load_base(base)
    with quiet():
        model.load_adapter(str(folder))
    model.eval()
    model.name_or_path = model.config.name_or_path = str(folder)
    return model, tokenizer
