"""Everything about a memory that is not a parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from namm.memory.birth import BIRTH_BOUNDS, BIRTH_FEATURES
from namm.memory.key_value import KEY_VALUE_FEATURES
from namm.memory.network import parameter_count
from namm.memory.spectrogram import AGE_FEATURES, SpectrogramConfig
from namm.support.tensors import Column


@dataclass(frozen=True)
class NAMMConfig:
    """Everything about a memory that is not a parameter. The defaults are the paper's reference configuration.

    Attributes:
        hidden: width of the backward attention.
        heads: its heads; divides `hidden`.
        update_interval: new tokens between two decisions, a multiple of the hop.
        window: see `SpectrogramConfig`.
        hop: see `SpectrogramConfig`.
        ema: see `SpectrogramConfig`.
        compression: see `SpectrogramConfig`.
        bands: see `SpectrogramConfig`.
        birth: what a token pays when it is new is seen too, see `birth_rows`.
        key_value: its key and value are seen too, see `key_value_features`.
        standardised: all but age is seen relative to the head's other tokens, with the head's own level beside it, see
            `within_head`; fixed statistics are then those of the levels.
        reach: newer tokens that the backward attention looks at, at most; None: all, which takes quadratic time.
        normalised: subtract and divide by the fixed statistics stored beside the parameters.
        state_dtype: how a kept token's spectrogram is stored in the cache, ``"float32"`` or ``"bfloat16"``.
        influence: power and shift of the scores of a distilled memory, ``power * log(influence) - shift``; see
            `namm.memory.influence`.
        kept: the fraction this memory keeps where its user names none; None: keep where the score is >= 0.
    """

    hidden: int = 32
    heads: int = 1
    update_interval: int = 512
    window: int = 32
    hop: int = 16
    ema: tuple[float, ...] = (0.99,)
    compression: str = "none"
    bands: tuple[tuple[int, int], ...] = ()
    birth: bool = False
    key_value: bool = False
    standardised: bool = False
    reach: int | None = None
    normalised: bool = False
    state_dtype: str = "float32"
    influence: tuple[float, float] | None = None
    kept: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ema", tuple(self.ema))
        object.__setattr__(self, "bands", tuple((int(first), int(last)) for first, last in self.bands))
        if self.influence is not None:
            power, shift = (float(value) for value in self.influence)
            if not (power > 0 and math.isfinite(power) and math.isfinite(shift)):
                raise ValueError(f"influence must be a positive power and a shift, got {self.influence}")
            object.__setattr__(self, "influence", (power, shift))
        if self.hidden < 1 or self.heads < 1 or self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide the hidden width ({self.hidden})")
        if self.update_interval < self.hop or self.update_interval % self.hop:
            raise ValueError(f"update_interval {self.update_interval} must be a positive multiple of hop {self.hop}")
        if self.update_interval < self.spectrogram.carry:
            raise ValueError(f"update_interval {self.update_interval} must not be shorter than window - hop")
        if self.kept is not None and not 0.0 < self.kept <= 1.0:
            raise ValueError(f"kept must be None or a fraction above 0 and at most 1, got {self.kept}")
        if self.reach is not None and self.reach < 0:
            raise ValueError(f"reach must be None or at least 0, got {self.reach}")
        if self.state_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"state_dtype must be 'float32' or 'bfloat16', got {self.state_dtype!r}")

    @property
    def spectrogram(self) -> SpectrogramConfig:
        return SpectrogramConfig(self.window, self.hop, self.ema, self.compression, self.bands)

    @property
    def observed(self) -> int:
        """Numbers that are observed of a token, beside its age."""
        spectrogram = len(self.ema) * self.spectrogram.channels
        return spectrogram + BIRTH_FEATURES * self.birth + KEY_VALUE_FEATURES * self.key_value

    @property
    def features(self) -> int:
        """Numbers that the network sees of a token: its age, what is observed, and where that is standardised, the
        head's levels."""
        return AGE_FEATURES + (1 + self.standardised) * self.observed

    @property
    def state(self) -> dict[str, Column]:
        """What a cache keeps of every token, beside its key and value."""
        dtype = getattr(torch, self.state_dtype)
        columns = {"spectrogram": Column((len(self.ema), self.spectrogram.channels), dtype)}
        return columns | ({"birth": Column((BIRTH_FEATURES,), dtype, BIRTH_BOUNDS)} if self.birth else {})

    @property
    def parameters(self) -> int:
        return parameter_count(self.features, self.hidden)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NAMMConfig:
        """Raises ValueError for keys that no field has: a misspelt key must not pass as a default."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)} - {"model_type"})
        if unknown:
            raise ValueError(f"unknown keys in the memory's configuration: {', '.join(unknown)}")
        return cls(**{key: value for key, value in values.items() if key != "model_type"})


UNIVERSAL = NAMMConfig(
    update_interval=256,
    ema=(0.99, 0.999),
    compression="log",
    bands=((0, 0), (1, 16)),
    birth=True,
    key_value=True,
    standardised=True,
    reach=256,
    normalised=True,
    state_dtype="bfloat16",
)
"""What a memory for every model sees: 28 bytes a token and head."""
