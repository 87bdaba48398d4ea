"""Adapters of low rank (LoRA, arXiv 2106.09685) in a model, by peft, and their folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from namm.learning.tuning.config import TuneConfig
from namm.learning.tuning.masked import attending_to_held
from namm.models.adapter import CONFIG_FILE, WEIGHTS_FILE
from namm.models.load import local_path
from namm.support.extras import need
from namm.support.files import strict_json, write_atomically

MEMORY_FILE = "memory.json"


class Adapters:
    """New adapters beside all linear layers of a model but its head.

    Attributes:
        parameters: by name, those that learn.
    """

    def __init__(self, model: PreTrainedModel, settings: TuneConfig) -> None:
        peft = need("peft", "tune")
        self._base = base_name(model)
        self._config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks by the old name
            torch.manual_seed(settings.seed)
            self._wrapped = peft.get_peft_model(model, self._config)
        self.parameters: dict[str, Tensor] = {
            name: own for name, own in self._wrapped.named_parameters() if own.requires_grad
        }

    def disabled(self) -> AbstractContextManager[None]:
        """Within it the model is as it was."""
        found: AbstractContextManager[None] = self._wrapped.disable_adapter()
        return found

    def save(self, folder: Path, memory: Mapping[str, Any], card: str) -> None:
        """Write them in peft's format, with what the memory was; each file is whole or old."""
        peft = need("peft", "tune")
        state = peft.get_peft_model_state_dict(self._wrapped, save_embedding_layers=False)  # "auto" asks the hub
        weights = {name: own.cpu().contiguous() for name, own in state.items()}
        described = self._config.to_dict()
        described |= {"base_model_name_or_path": self._base, "inference_mode": True}
        described = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
        write_atomically(folder / WEIGHTS_FILE, lambda partial: save_file(weights, partial, metadata={"format": "pt"}))
        write_atomically(folder / CONFIG_FILE, strict_json(described, indent=2) + "\n")
        write_atomically(folder / MEMORY_FILE, strict_json(dict(memory), indent=2) + "\n")
        write_atomically(folder / "README.md", card)

    def remove(self) -> None:
        """Leave the model as it was."""
        self._wrapped.unload()


@contextmanager
def adapted(model: PreTrainedModel, settings: TuneConfig) -> Iterator[Adapters]:
    """Within it the model has adapters and is in training; afterwards it is as it was.

    Its layers are checkpointed where a text is one call, or it is asked for; else `text_loss` checkpoints pieces alone.

    Raises:
        ValueError: if it has adapters already.
    """
    if getattr(model, "peft_config", None):
        raise ValueError("the model has adapters already: learn from its base model, or merge them first")
    wanted = {name: own.requires_grad for name, own in model.named_parameters()}
    training = model.training
    one_call = settings.kept is None or settings.masked is not None
    checkpoints = (one_call or settings.checkpoint_layers) and not model.is_activation_checkpointing
    adapters: Adapters | None = None
    masks = nullcontext() if settings.masked is None else attending_to_held(model)
    try:
        adapters = Adapters(model, settings)
        model.train()
        if checkpoints:
            model.activation_checkpointing_enable()
        with masks:
            yield adapters
    finally:
        if checkpoints:
            model.activation_checkpointing_disable()
        if adapters is not None:
            adapters.remove()
        for name, own in model.named_parameters():
            own.requires_grad_(wanted[name])
        model.train(training)


def base_name(model: PreTrainedModel) -> str:
    """By which `namm.load_model` finds the model again, from any folder.

    Raises:
        ValueError: if it has no name.
    """
    name = model.name_or_path
    if not name:
        raise ValueError("the model has no name to find it by: save_pretrained() it, and load it from its folder")
    path = local_path(name)
    return name if path is None else os.fspath(path.resolve())
