"""Parity with the reference, and proof that the parity test can fail: every step, done wrong, breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable

import golden as replay
import pytest
import torch
from torch import Tensor

import namm.memory.features
import namm.memory.namm
import namm.memory.network
import namm.memory.spectrogram
import namm.policies.namm
from namm.memory.spectrogram import SpectrogramConfig

GOLDEN = replay.load()


@pytest.mark.parametrize("case", replay.cases(GOLDEN))
def test_parity(case: str) -> None:
    assert replay.check_case(GOLDEN, case) > 100


def _transposed(flat: Tensor, features: int, hidden: int) -> dict[str, Tensor]:
    parts = unflatten(flat, features, hidden)
    return {k: w.T.reshape(w.shape) if w.ndim == 2 and min(w.shape) > 1 else w for k, w in parts.items()}


def _swap_read(flat: Tensor, features: int, hidden: int) -> dict[str, Tensor]:
    parts = unflatten(flat, features, hidden)
    for name in ("attention.output.weight", "attention.output.bias"):
        parts[name] = torch.cat(parts[name].chunk(2, -1)[::-1], -1)
    return parts


def _forward_attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _open_attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def _without_itself(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    older = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(0)
    older[-1, -1] = False
    return logits.masked_fill(older, -math.inf).softmax(-1) @ value


def _unscaled(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return backward_attention(query * query.shape[-1] ** 0.5, key, value)


def _symmetric_hann(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    n = torch.arange(window, dtype=torch.float64)
    ratio = (1 - torch.cos(2 * math.pi * n / (window - 1))) / (1 - torch.cos(2 * math.pi * n / window)).clamp_min(1e-12)
    return fourier_basis(window, dtype, device) * ratio.to(dtype)


def _power(signal: Tensor, config: SpectrogramConfig) -> Tensor:
    return stft_magnitudes(signal, config).square()


def _averages(decay: Callable[[float, int], float], gain: Callable[[float, int], float]) -> Callable[..., Tensor]:
    def wrong(magnitudes: Tensor, config: SpectrogramConfig) -> Tensor:
        frames, c = magnitudes.shape[0], config.ema[0]
        weights = torch.tensor([gain(c, config.hop) * decay(c, config.hop) ** (frames - 1 - t) for t in range(frames)])
        return torch.einsum("t,tfn->nf", weights, magnitudes)[:, None]

    return wrong


def _carry(exponent: Callable[[int], float]) -> Callable[..., Tensor]:
    def wrong(previous: Tensor, signal: Tensor, config: SpectrogramConfig) -> Tensor:
        queries = signal.shape[0] - config.carry
        block = namm.memory.spectrogram.moving_averages(stft_magnitudes(signal, config), config)
        return block + config.ema[0] ** exponent(queries) * previous

    return wrong


def _no_tail(previous: Tensor, signal: Tensor, config: SpectrogramConfig) -> Tensor:
    signal = signal.clone()
    signal[: config.carry] = 0
    return update_spectrogram(previous, signal, config)


def _cosines_first(ages: Tensor) -> Tensor:
    return age_features(ages).roll(4, -1)


def _from_one(ages: Tensor) -> Tensor:
    return age_features(ages + 1)


def _by_cache_index(ages: Tensor) -> Tensor:
    return age_features(torch.arange(len(ages) - 1, -1, -1))


def _spectrogram_first(self: namm.NAMM, spectrogram: Tensor, ages: Tensor) -> Tensor:
    return memory_features(self, spectrogram, ages).roll(-8, -1)


def _unnormalised(spectrogram: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return spectrogram


age_features, fourier_basis = namm.memory.spectrogram.age_features, namm.memory.spectrogram.fourier_basis
stft_magnitudes, update_spectrogram = (
    namm.memory.spectrogram.stft_magnitudes,
    namm.memory.spectrogram.update_spectrogram,
)
unflatten, backward_attention = namm.memory.network.unflatten, namm.memory.network.backward_attention
memory_features = namm.memory.NAMM.features

WRONG = {
    "weights transposed": (namm.memory.namm, "unflatten", _transposed),
    "residual and modulation swapped": (namm.memory.namm, "unflatten", _swap_read),
    "attention to older tokens": (namm.memory.network, "backward_attention", _forward_attention),
    "attention to all tokens": (namm.memory.network, "backward_attention", _open_attention),
    "attention without the token itself": (namm.memory.network, "backward_attention", _without_itself),
    "attention unscaled": (namm.memory.network, "backward_attention", _unscaled),
    "symmetric window": (namm.memory.spectrogram, "fourier_basis", _symmetric_hann),
    "power for magnitude": (namm.memory.spectrogram, "stft_magnitudes", _power),
    "gain 1 - c": (namm.memory.spectrogram, "moving_averages", _averages(lambda c, hop: c**hop, lambda c, hop: 1 - c)),
    "no gain": (namm.memory.spectrogram, "moving_averages", _averages(lambda c, hop: c**hop, lambda c, hop: 1.0)),
    "c a frame": (namm.memory.spectrogram, "moving_averages", _averages(lambda c, hop: c, lambda c, hop: 1 - c)),
    "carry c^16": (namm.memory.features, "update_spectrogram", _carry(lambda queries: 16)),
    "carry c^frames": (namm.memory.features, "update_spectrogram", _carry(lambda queries: queries / 16)),
    "carry nothing": (namm.memory.features, "update_spectrogram", _carry(lambda queries: math.inf)),
    "tail forgotten": (namm.memory.features, "update_spectrogram", _no_tail),
    "cosines first": (namm.memory.features, "age_features", _cosines_first),
    "ages from 1": (namm.memory.features, "age_features", _from_one),
    "ages by cache index": (namm.memory.features, "age_features", _by_cache_index),
    "spectrogram before age": (namm.NAMM, "features", _spectrogram_first),
    "not normalised": (namm.memory.features, "normalise", _unnormalised),
}


@pytest.mark.parametrize("step", WRONG)
def test_parity_fails_when_a_step_is_wrong(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*WRONG[step])
    with pytest.raises(AssertionError):
        for case in replay.cases(GOLDEN):
            replay.check_case(GOLDEN, case)


def test_a_score_of_exactly_zero_stays() -> None:
    memory = namm.NAMM(namm.NAMMConfig(), torch.zeros(4172))
    policy = namm.policies.NAMMPolicy(memory)
    head = namm.policies.Head(0, 0, 0, {"positions": torch.arange(4), "spectrogram": torch.rand(4, 1, 17)}, 4, 4)
    assert policy.select([head])[0].all()
