"""From attention values to the features of a cached token.

Every cached token has a time series: the attention that one query after the other pays it. Its short-time Fourier
transform, reduced over time by exponential moving averages, and its age are all that a NAMM sees (paper, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from namm.support.tensors import round_up

AGE_FEATURES = 8
AGE_BASE = 50_000.0
LOG_FLOOR = 1e-6
NORM_FLOOR = 1e-7


@dataclass(frozen=True)
class SpectrogramConfig:
    """How a token's attention series becomes numbers.

    Attributes:
        window: length of the periodic Hann window, in queries.
        hop: queries from one frame to the next; divides `window`.
        ema: coefficients of the moving averages, per *query*; each gives `channels` features.
        compression: ``"none"`` (as in the reference) or ``"log"`` (log of the magnitudes).
        bands: ranges of bins, first and last, whose mean is kept in place of every bin; none: all bins.
    """

    window: int = 32
    hop: int = 16
    ema: tuple[float, ...] = (0.99,)
    compression: str = "none"
    bands: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.window < 2 or self.window % 2 or self.hop < 1 or self.window % self.hop:
            raise ValueError(f"window {self.window} must be even and a multiple of hop {self.hop}")
        if not self.ema or not all(0.0 < c < 1.0 for c in self.ema):
            raise ValueError(f"every EMA coefficient must lie between 0 and 1, got {self.ema}")
        if self.compression not in ("none", "log"):
            raise ValueError(f"compression must be 'none' or 'log', got {self.compression!r}")
        if not all(len(band) == 2 and 0 <= band[0] <= band[1] < self.bins for band in self.bands):
            raise ValueError(f"every band must be a first and a last bin of 0 to {self.bins - 1}, got {self.bands}")

    @property
    def bins(self) -> int:
        """Frequencies of a frame, 0 to Nyquist."""
        return self.window // 2 + 1

    @property
    def carry(self) -> int:
        """Queries of the previous block that the first frame of a block reaches back to."""
        return self.window - self.hop

    @property
    def channels(self) -> int:
        """Numbers that are kept of a frame: its bands, or all bins."""
        return len(self.bands) or self.bins


@lru_cache(maxsize=32)
def fourier_basis(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Windowed real DFT as a matrix ``[window, window]``: rows 0..w/2 are cosines, the rest the sines of bins 1..w/2-1.

    Bins 0 and w/2 have no imaginary part, so `window` rows are enough.
    """
    n = torch.arange(window, dtype=torch.float64)
    hann = 0.5 * (1 - torch.cos(2 * math.pi * n / window))
    angle = 2 * math.pi / window * torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * n
    basis = torch.cat([torch.cos(angle), torch.sin(angle[1:-1])]) * hann
    return basis.to(device=device, dtype=dtype)


def stft_magnitudes(signal: Tensor, config: SpectrogramConfig) -> Tensor:
    """Magnitudes of the short-time Fourier transform of every column.

    Args:
        signal: ``[carry + queries, tokens]``, oldest query first; ``queries`` is a multiple of the hop.

    Returns:
        ``[frames, bins, tokens]`` with ``frames = queries // hop``; no centring, no scaling.

    Raises:
        ValueError: if the number of rows is not ``carry`` plus a positive multiple of the hop.
    """
    queries = signal.shape[0] - config.carry
    if queries < config.hop or queries % config.hop:
        raise ValueError(
            f"stft_magnitudes: {signal.shape[0]} rows are not {config.carry} carried plus a multiple of {config.hop}"
        )
    signal = signal.contiguous()
    tokens = signal.shape[1]
    frames = signal.as_strided((queries // config.hop, config.window, tokens), (config.hop * tokens, tokens, 1))
    parts = fourier_basis(config.window, signal.dtype, signal.device) @ frames
    power = parts.square_()
    power[:, 1 : config.bins - 1].add_(power[:, config.bins :])
    return power[:, : config.bins].sqrt_()


@lru_cache(maxsize=32)
def band_means(bands: tuple[tuple[int, int], ...], bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mean over the bins of each band as a matrix ``[bands, bins]``."""
    means = torch.zeros(len(bands), bins, dtype=torch.float64)
    for band, (first, last) in enumerate(bands):
        means[band, first : last + 1] = 1 / (last + 1 - first)
    return means.to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def frame_weights(ema: tuple[float, ...], hop: int, frames: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each frame of a block is worth in each moving average, ``[averages, frames]``."""
    ages = torch.arange(frames - 1, -1, -1, dtype=torch.float64)
    decay = torch.tensor(ema, dtype=torch.float64)[:, None] ** hop
    return ((1 - decay) * decay**ages).to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def remaining(ema: tuple[float, ...], queries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is left of each moving average after so many queries, ``[averages, 1]``."""
    return torch.tensor([c**queries for c in ema], dtype=dtype, device=device)[:, None]


def moving_averages(magnitudes: Tensor, config: SpectrogramConfig) -> Tensor:
    """Exponential moving averages over the frames of one block, without what earlier blocks left.

    A coefficient c is per query, so a frame is worth ``g = c ** hop`` and

        e = (1 - g) * sum_t g ** (frames - 1 - t) * S[t].

    Args:
        magnitudes: ``[frames, bins, tokens]``.

    Returns:
        ``[tokens, len(ema), channels]``.
    """
    frames = magnitudes.shape[0]
    weights = frame_weights(config.ema, config.hop, frames, magnitudes.dtype, magnitudes.device)
    averaged = (weights @ magnitudes.reshape(frames, -1)).reshape(len(config.ema), *magnitudes.shape[1:])
    if config.bands:
        averaged = band_means(config.bands, config.bins, averaged.dtype, averaged.device) @ averaged
    return averaged.permute(2, 0, 1)


def update_spectrogram(previous: Tensor, signal: Tensor, config: SpectrogramConfig) -> Tensor:
    """The spectrogram of every token after one more block of queries.

    This is the seam for a fused kernel: attention in, averaged spectrogram out.

    Args:
        previous: ``[tokens, len(ema), channels]``, float; zeros for the tokens that are new in this block.
        signal: ``[carry + queries, tokens]``, the attention paid by the last ``carry`` queries of the block before
            (zeros before the first) and by this block's queries.

    Returns:
        ``c ** queries * previous + moving averages of the block``, in float32 (or float64 where `signal` is).
    """
    if signal.dtype == torch.float16:
        signal = signal.float()  # squares of small attention underflow
    tokens = signal.shape[1]
    free = round_up(tokens) - tokens
    slots = F.pad(signal, (0, free)) if free else signal
    block = moving_averages(stft_magnitudes(slots, config), config)[:tokens]
    dtype = torch.promote_types(block.dtype, torch.float32)
    kept = remaining(config.ema, signal.shape[0] - config.carry, dtype, block.device)
    return torch.addcmul(block.to(dtype), kept, previous.to(dtype))


@lru_cache(maxsize=8)
def _age_frequencies(device: torch.device) -> Tensor:
    k = torch.arange(AGE_FEATURES // 2, dtype=torch.float64)
    return (AGE_BASE ** (-k / (AGE_FEATURES // 2))).to(device)


def age_features(ages: Tensor) -> Tensor:
    """Sines, then cosines of a token's age at four geometric frequencies.

    Args:
        ages: ``[...]`` integers, original position of the newest token minus that of each token.

    Returns:
        ``[..., 8]`` float32, computed in float64.
    """
    angles = ages[..., None] * _age_frequencies(ages.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(torch.float32)


def compress(spectrogram: Tensor, config: SpectrogramConfig) -> Tensor:
    """The averaged magnitudes as the network sees them: as they are, or their logarithm."""
    return spectrogram if config.compression == "none" else (spectrogram + LOG_FLOOR).log()


def normalise(spectrogram: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``(s - mean) / max(sqrt(variance), 1e-7)`` with fixed statistics ``[features]``."""
    return (spectrogram - mean) / variance.sqrt().clamp_min(NORM_FLOOR)
