"""A neural attention memory model: configuration, parameters, and how they are kept on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from namm.memory.config import NAMMConfig
from namm.memory.features import network_features
from namm.memory.files import (
    CARD_FILE,
    CONFIG_FILE,
    CONFIG_KEY,
    WEIGHTS_FILE,
    MemoryFileError,
    find_memory,
    read_tensors,
)
from namm.memory.network import initial_parameters, parameter_shapes, token_scores, unflatten
from namm.support.files import commit, prepare, strict_json, write_atomically
from namm.support.fingerprints import fingerprint


@dataclass
class NAMM:
    """A memory: a configuration, one flat parameter vector, and fixed normalisation statistics.

    >>> memory = NAMM(NAMMConfig())
    >>> memory.flat_parameters().shape
    torch.Size([4172])

    Attributes:
        config: see `NAMMConfig`.
        flat: ``[parameters]`` float32 in the order of `namm.memory.network.parameter_shapes`;
            ``[population, parameters]`` for a population scored at once.
        mean: ``[config.observed]`` float32, used where ``config.normalised``.
        variance: likewise.
    """

    config: NAMMConfig = field(default_factory=NAMMConfig)
    flat: Tensor = None  # type: ignore[assignment]  # made in __post_init__ where not given
    mean: Tensor = None  # type: ignore[assignment]
    variance: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        config = self.config
        if self.flat is None:
            self.flat = initial_parameters(config.features, config.hidden, torch.Generator().manual_seed(0))
        statistics = config.observed
        self.mean = torch.zeros(statistics) if self.mean is None else self.mean
        self.variance = torch.ones(statistics) if self.variance is None else self.variance
        self.load_flat_parameters(self.flat)
        if self.mean.shape != (statistics,) or self.variance.shape != (statistics,):
            raise ValueError(f"normalisation needs {statistics} means and variances, got {tuple(self.mean.shape)}")
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.variance).all() and (self.variance >= 0).all()):
            raise ValueError("normalisation statistics must be finite, and variances not negative")

    def flat_parameters(self) -> Tensor:
        """A copy of the parameters, ``[parameters]`` float32."""
        return self.flat.detach().clone()

    def fingerprint(self) -> str:
        """Of all that its decisions depend on: parameters, normalisation and configuration."""
        return fingerprint(self.flat, self.mean, self.variance, asdict(self.config))

    def load_flat_parameters(self, vector: Tensor) -> None:
        """Replace the parameters.

        Raises:
            ValueError: if the vector's length does not fit the configuration, or it holds NaN or infinity.
        """
        vector = torch.as_tensor(vector, dtype=torch.float32)
        unflatten(vector, self.config.features, self.config.hidden)
        if not torch.isfinite(vector).all():
            raise ValueError("the parameter vector holds NaN or infinite values")
        self.flat = vector

    def to(self, device: torch.device | str) -> NAMM:
        return replace(self, flat=self.flat.to(device), mean=self.mean.to(device), variance=self.variance.to(device))

    def features(self, observed: Tensor, ages: Tensor, counts: Tensor | None = None) -> Tensor:
        """What the network sees of every token, ``[..., tokens, features]`` float32; see `network_features`."""
        return network_features(observed, ages, self.config, self.mean, self.variance, counts)

    def scores(self, features: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """``[..., tokens]`` scores of features ``[..., tokens, features]`` that are ordered from oldest to newest.

        Args:
            lengths: tokens of each head, where those of several come one head behind the other.
        """
        weights = unflatten(self.flat, self.config.features, self.config.hidden)
        return token_scores(features, weights, self.config.heads, self.config.reach, lengths)

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and, where given, a model card ``README.md``.

        Atomic: whenever it is interrupted, the folder holds the memory that it held or this one.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = unflatten(self.flat.detach().cpu(), self.config.features, self.config.hidden)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors |= {"normalisation.mean": self.mean.cpu(), "normalisation.variance": self.variance.cpu()}
        config = strict_json({"model_type": "namm"} | asdict(self.config), indent=2) + "\n"
        metadata = {CONFIG_KEY: config}  # one key: the order of several is left to chance, and so are the bytes
        # the old memory is there until the weights are replaced, and the new one from then on, see `read_config`
        described = prepare(folder / CONFIG_FILE, config)
        write_atomically(folder / WEIGHTS_FILE, lambda partial: save_file(tensors, partial, metadata=metadata))
        commit(described, folder / CONFIG_FILE)
        if card is not None:
            write_atomically(folder / CARD_FILE, card)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> NAMM:
        """Load a memory by the name of one that ships with the package, from a folder, or from a hub id.

        Raises:
            MemoryFileError: naming what is missing, damaged or inconsistent, and what to do.
        """
        folder = find_memory(name)
        tensors, saved = read_tensors(folder / WEIGHTS_FILE)
        config = _read_config(folder, saved)
        shapes = parameter_shapes(config.features, config.hidden)
        statistics = {f"normalisation.{name}": (config.observed,) for name in ("mean", "variance")}
        for part, shape in (shapes | statistics).items():
            if part not in tensors:
                raise MemoryFileError(f"{folder / WEIGHTS_FILE} lacks the tensor {part!r}")
            if tuple(tensors[part].shape) != shape:
                raise MemoryFileError(
                    f"{folder}: {part!r} has shape {tuple(tensors[part].shape)} in {WEIGHTS_FILE}, "
                    f"but {CONFIG_FILE} asks for {shape}"
                )
        flat = torch.cat([tensors[part].float().flatten() for part in shapes])
        mean, variance = (tensors[f"normalisation.{name}"].float() for name in ("mean", "variance"))
        try:
            return cls(config, flat, mean, variance)
        except ValueError as error:
            raise MemoryFileError(f"{folder / WEIGHTS_FILE}: {error}") from error


def _read_config(folder: Path, saved: str | None) -> NAMMConfig:
    """The configuration of the weights in a folder.

    Weights carry the one they were saved with. If ``config.json`` differs from it, saving was interrupted after the
    weights, and the new file still lies beside the old one; or it was edited.
    """
    wanted = None if saved is None else _parse_config(saved, f"what {folder / WEIGHTS_FILE} was saved with")
    for file in (folder / CONFIG_FILE, folder / f"{CONFIG_FILE}.partial"):
        if file.exists() or wanted is None:
            try:
                text = file.read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                raise MemoryFileError(f"{file} is no memory configuration: {error}") from error
            found = _parse_config(text, str(file))
            if wanted in (None, found):
                return found
    raise MemoryFileError(
        f"{folder / CONFIG_FILE} is missing, or not the configuration that {WEIGHTS_FILE} was saved with: "
        "copy both from one source; another configuration is set in Python and saved with `save_pretrained`"
    )


def _parse_config(text: str, source: str) -> NAMMConfig:
    try:
        return NAMMConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise MemoryFileError(f"{source} is no memory configuration: {error}") from error
