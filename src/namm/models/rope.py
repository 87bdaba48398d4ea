"""Past a model's window: NTK-aware interpolation of rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def extend_window(model: PreTrainedModel, factor: float) -> None:
    """Stretch the rotary positions of a loaded model, in place, so that it reads `factor` times its window.

    NTK-aware interpolation, as in the NAMM paper: the base grows by ``factor ** (d / (d - 2))``, which leaves the
    fastest of the ``d / 2`` frequencies as it is and divides the slowest by `factor`:

        f'_i = f_i * factor ** (-2 i / (d - 2))

    Layers with sliding windows keep their frequencies. Caches that are in use must be thrown away.

    Raises:
        ValueError: if the factor is below 1, or the model has no plain rotary positions (none at all, scaled already).
    """
    if factor < 1:
        raise ValueError(f"the window can be extended by a factor of at least 1, not {factor}")
    config: Any = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    own = parameters.get("full_attention", parameters)
    buffers = [
        buffer
        for module in model.modules()
        if getattr(module, "config", None) is config
        for name, buffer in module.named_buffers(recurse=False)
        if name in ("inv_freq", "full_attention_inv_freq")
    ]
    if own.get("rope_type") != "default" or not buffers:
        kind = own.get("rope_type") or "no rotary positions"
        raise ValueError(f"{type(model).__name__} has {kind}; only plain rotary positions can be stretched")
    for frequencies in buffers:
        steps = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
        stretched = frequencies.double() * factor ** (-steps / max(1, len(frequencies) - 1))
        frequencies.copy_(stretched)
    config.max_position_embeddings = int(config.max_position_embeddings * factor)
