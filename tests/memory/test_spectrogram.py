from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namm.memory.spectrogram import (
    SpectrogramConfig,
    age_features,
    compress,
    moving_averages,
    normalise,
    stft_magnitudes,
    update_spectrogram,
)


def reference(signals: list[np.ndarray], config: SpectrogramConfig) -> np.ndarray:
    """Spectrogram of one uninterrupted series of blocks, in float64 and from the definition."""
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(config.window) / config.window))
    averages = np.zeros((signals[0].shape[1], len(config.ema), config.bins))
    tail = np.zeros((config.carry, signals[0].shape[1]))
    for signal in signals:
        padded = np.concatenate([tail, signal])
        frames = len(signal) // config.hop
        for e, c in enumerate(config.ema):
            averages[:, e] *= c ** len(signal)
            for t in range(frames):
                frame = padded[t * config.hop : t * config.hop + config.window] * window[:, None]
                magnitude = np.abs(np.fft.rfft(frame, axis=0)).T
                g = c**config.hop
                averages[:, e] += (1 - g) * g ** (frames - 1 - t) * magnitude
        tail = padded[len(padded) - config.carry :]
    if config.bands:
        averages = np.stack([averages[..., first : last + 1].mean(-1) for first, last in config.bands], axis=-1)
    return averages


@settings(max_examples=30, deadline=None)
@given(
    blocks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    tokens=st.integers(1, 5),
    shape=st.sampled_from([(32, 16), (16, 16), (32, 8), (8, 4)]),
    ema=st.lists(st.sampled_from([0.9, 0.99, 0.999]), min_size=1, max_size=3, unique=True),
    bands=st.sampled_from([(), ((0, 0), (1, 4)), ((0, 0), (1, 2), (3, 4)), ((2, 2),)]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_float64(blocks, tokens, shape, ema, bands, seed):
    config = SpectrogramConfig(*shape, tuple(ema), bands=bands)
    rng = np.random.default_rng(seed)
    lengths = [max(n * config.hop, -(-config.carry // config.hop) * config.hop) for n in blocks]
    signals = [rng.random((length, tokens)) for length in lengths]
    state = torch.zeros(tokens, len(ema), config.channels, dtype=torch.float64)
    tail = torch.zeros(config.carry, tokens, dtype=torch.float64)
    for signal in signals:
        whole = torch.cat([tail, torch.tensor(signal)])
        state = update_spectrogram(state, whole, config)
        tail = whole[len(whole) - config.carry :]
    np.testing.assert_allclose(state.numpy(), reference(signals, config), atol=1e-10)


def test_bfloat16_attention_gives_float32_features_close_to_float64() -> None:
    config = SpectrogramConfig()
    attention = torch.rand(16 + 256, 40, dtype=torch.float64).pow(4)
    exact = update_spectrogram(torch.zeros(40, 1, 17, dtype=torch.float64), attention, config)
    coarse = update_spectrogram(torch.zeros(40, 1, 17), attention.bfloat16(), config)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), exact, rtol=0.02, atol=0.01)


def test_the_input_is_left_alone() -> None:
    attention = torch.rand(48, 3)
    before = attention.clone()
    stft_magnitudes(attention, SpectrogramConfig())
    assert torch.equal(attention, before)


def test_a_constant_series_averages_to_its_level() -> None:
    config = SpectrogramConfig()
    averaged = moving_averages(torch.full((4000, 17, 2), 3.0, dtype=torch.float64), config)
    torch.testing.assert_close(averaged, torch.full((2, 1, 17), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("rows", [16, 30, 0])
def test_rows_that_are_no_whole_frames_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        stft_magnitudes(torch.zeros(rows, 2), SpectrogramConfig())


def test_age_features_of_zero_and_of_long_contexts() -> None:
    features = age_features(torch.tensor([0, 1_000_000]))
    assert features.shape == (2, 8) and features.dtype == torch.float32
    assert torch.equal(features[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    exact = np.sin(1e6 * 50_000.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(features[1, :4], exact, atol=1e-6)


def test_log_compression_and_normalisation() -> None:
    spectrogram = torch.tensor([[0.0, 1.0]])
    assert compress(spectrogram, SpectrogramConfig()) is spectrogram
    logged = compress(spectrogram, SpectrogramConfig(compression="log"))
    torch.testing.assert_close(logged, torch.tensor([[-13.8155, 0.0]]), atol=1e-4, rtol=0)
    scaled = normalise(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 5.0]), torch.tensor([4.0, 0.0]))
    assert torch.equal(scaled, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    "values",
    [
        {"window": 31},
        {"hop": 7},
        {"hop": 0},
        {"ema": ()},
        {"ema": (1.0,)},
        {"compression": "cube"},
        {"bands": ((0, 17),)},
        {"bands": ((3, 2),)},
    ],
)
def test_bad_configurations_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SpectrogramConfig(**values)  # type: ignore[arg-type]
