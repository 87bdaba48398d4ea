"""Fingerprints: what results depend on, in sixteen characters."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

# of a model's configuration, what says nothing of its results; nor do keys that begin with an underscore
_ASIDE = {"architectures", "transformers_version", "use_cache", "return_dict", "id2label", "label2id", "problem_type"}
_ASIDE |= {"output_attentions", "output_hidden_states"}


def fingerprint(*parts: object) -> str:
    """Of tensors every bit with dtype and shape, of anything else its JSON (or its ``str``)."""
    seen = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            seen.update(f"\0{part.dtype} {tuple(part.shape)}\0".encode())
            seen.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            seen.update(b"\0" + json.dumps(part, sort_keys=True, default=str).encode())
    return seen.hexdigest()[:16]


def model_fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Of a model's class, all its weights and its configuration: about a second for two GB.

    Two fine-tunes of one model may differ in a few of their weights only, so none is passed over. Weights that
    accelerate keeps elsewhere until they are needed are fetched.

    Args:
        dtype: of weights rounded to it, so that one model has one fingerprint in all dtypes that hold as much.
    """
    weights: dict[str, Any] = model.state_dict()
    if any(isinstance(value, Tensor) and value.is_meta for value in weights.values()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        weights = get_state_dict_offloaded_model(model)
    config = getattr(model, "config", None)
    described = _plain(config.to_dict()) if config is not None else None
    if dtype is not None:
        weights = {name: _rounded(value, dtype) for name, value in weights.items()}
        described = {key: value for key, value in (described or {}).items() if key not in ("dtype", "torch_dtype")}
    return fingerprint(type(model).__name__, described, *(part for item in sorted(weights.items()) for part in item))


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of a tokenizer's vocabulary, special tokens and chat template."""
    return fingerprint(tokenizer.get_vocab(), tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None))


def _plain(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    kept = {str(key): _plain(value) for key, value in config.items()}
    return {key: value for key, value in kept.items() if key not in _ASIDE and not key.startswith("_")}
