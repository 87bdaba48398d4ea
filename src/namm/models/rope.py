"""Rotary positions: what a model does with them, and past its window NTK-aware interpolation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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


@dataclass(frozen=True)
class Rotary:
    """How a model turns queries and keys by their positions: pairs of numbers, each by an angle of its own.

    Attributes:
        frequencies: ``[pairs]`` float32, radians a position. Numbers beyond the pairs are left as they are.
        interleaved: pairs are neighbours; else the numbers of a pair are as far apart as there are pairs.
        scaling: of what is turned.
    """

    frequencies: Tensor
    interleaved: bool
    scaling: float

    def turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors ``[..., n, width]`` float as the model has them at the positions ``[n]``."""
        angles = self._angles(positions)
        return self._turn(vectors, angles.cos() * self.scaling, angles.sin() * self.scaling)

    def turned_back(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """The inverse of `turned`."""
        angles = self._angles(positions)
        return self._turn(vectors, angles.cos() / self.scaling, -angles.sin() / self.scaling)

    def turned_on_average(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Mean over the positions ``[n]`` of each vector ``[..., width]`` turned by them."""
        angles = self._angles(positions)
        return self._turn(vectors, angles.cos().mean(0) * self.scaling, angles.sin().mean(0) * self.scaling)

    def _angles(self, positions: Tensor) -> Tensor:
        return positions[:, None].float() * self.frequencies.to(positions.device)

    def _turn(self, vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        pairs = len(self.frequencies)
        inside, rest = vectors[..., : 2 * pairs], vectors[..., 2 * pairs :]
        first, second = (inside[..., ::2], inside[..., 1::2]) if self.interleaved else inside.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        whole = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat([whole, rest], dim=-1)


@torch.no_grad()
def rotary_of(model: PreTrainedModel) -> Rotary:
    """How a model's full-attention layers turn queries and keys, checked against the model's own function.

    Raises:
        ValueError: if it does so in a way that `Rotary` can't describe: not at all, in some layers only, by
            frequencies that change with the length, by positions of several dimensions.
    """
    config: Any = model.config.get_text_config(decoder=True)
    refused = ValueError(
        f"{type(model).__name__} turns no queries by their positions, or in a way that is not known here; choose a "
        "policy that does not look at queries"
    )
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("full_attention", parameters).get("rope_type")
    if kind in ("dynamic", "longrope") or not all(getattr(config, "no_rope_layers", None) or [True]):
        raise refused
    for module in model.modules():
        turn = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        if getattr(module, "config", None) is not config or turn is None:
            continue
        for before in ("full_attention_", ""):
            frequencies = getattr(module, f"{before}inv_freq", None)
            if frequencies is not None:
                scaling = float(getattr(module, f"{before}attention_scaling", 1.0))
                layer = {"layer_type": "full_attention"} if before else {}
                found = _matching(module, turn, frequencies.float().clone(), scaling, layer)
                if found is None:
                    raise refused
                return found
    raise refused


def _matching(
    module: Any, turn: Callable[..., Any], frequencies: Tensor, scaling: float, layer: dict[str, str]
) -> Rotary | None:
    """The description that gives what the model's own function gives, if one does."""
    device, positions = frequencies.device, torch.tensor([0, 1, 7], device=frequencies.device)
    for width in (2 * len(frequencies), 2 * len(frequencies) + 4):
        sample = torch.randn(1, 1, 3, width, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            own = turn(sample, sample, *module(sample, positions[None], **layer))[0]
        except Exception:  # of another form than the usual
            continue
        for interleaved in (False, True):
            found = Rotary(frequencies, interleaved, scaling)
            if own.shape == sample.shape and torch.allclose(own, found.turned(sample, positions), atol=1e-4):
                return found
    return None
