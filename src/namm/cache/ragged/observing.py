"""What a policy makes of the attention since the last update, as kernels do it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.ragged.kernels import birth, observation
from namm.cache.ragged.launching import launch, numbers, power_of_two, widens
from namm.cache.ragged.ring import Ring
from namm.cache.ragged.store import RaggedStore
from namm.memory.spectrogram import SpectrogramConfig, band_means, fourier_basis
from namm.policies import NAMMPolicy
from namm.policies.base import Policy, Received

KEYS = 64  # keys at once
TOKENS = 16  # tokens whose birth rows one program makes
CPU = torch.device("cpu")


@lru_cache(maxsize=16)
def transform(
    config: SpectrogramConfig, group: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `observation.spectrogram` multiplies with: cosines, sines, decays, bands, and those of the last bin."""
    with torch.inference_mode(False):
        window, hop, half = config.window, config.hop, config.window // 2
        basis = fourier_basis(window, torch.float64, CPU)
        queries, bins, bands = power_of_two(hop * group), power_of_two(half), power_of_two(config.channels)
        cosines, sines = (torch.zeros(2, queries, bins, dtype=torch.float64) for _ in range(2))
        for part, first in ((0, 0), (1, window - hop)) if config.carry else ((1, 0),):
            own = (basis[:, first : first + hop].T / group).repeat_interleave(group, 0)
            cosines[part, : hop * group, :half] = own[:, :half]
            sines[part, : hop * group, :half] = torch.cat([own[:, half : half + 1], own[:, half + 1 :]], dim=1)
        means = torch.eye(config.bins, dtype=torch.float64)
        if config.bands:
            means = band_means(config.bands, config.bins, torch.float64, CPU)
        shares = torch.zeros(bins + 1, bands, dtype=torch.float64)
        shares[:half, : config.channels], shares[bins, : config.channels] = means.T[:half], means.T[half]
        decays = torch.tensor([*config.ema, 0.5][: len(config.ema) + len(config.ema) % 2], dtype=torch.float64)
        place: Any = {"device": device, "dtype": torch.float32}
        return (
            cosines.to(device, dtype),
            sines.to(device, dtype),
            (decays**hop).to(**place),
            shares[:bins].to(**place),
            shares[bins].to(**place),
        )


def normalise(store: RaggedStore, ring: Ring, rows: Sequence[int], fresh: int, form: AttentionForm) -> None:
    """Have the normalisers of the queries since the last update of some rows by what is left of the keys they saw."""
    device, group = store.device, ring.queries.shape[2]
    segments = numbers(tuple(store.segment(row, head) for row in rows for head in range(store.heads)), device)
    queries, tokens = min(fresh, ring.capacity - ring.carry), max(1, 64 // group)
    sinks = ring.normalisers if form.sinks is None else form.sinks
    arguments, constants = _asking(store, ring, segments, sinks, form, tokens)
    del arguments[5]  # the stride of a state
    launch(
        observation.normalise,
        (len(segments), -(-queries // tokens)),
        *arguments,
        queries,
        *_form(form),
        **constants,
        HEADS=store.heads,
        SINKS=form.sinks is not None,
        TOKENS=tokens,
        num_warps=4,
    )


def observe(
    policy: Policy, store: RaggedStore, ring: Ring, rows: Sequence[int], fresh: int, form: AttentionForm
) -> None:
    """Carry the policy's columns on for some rows with so many tokens since their last update."""
    device = store.device
    segments = numbers(tuple(store.segment(row, head) for row in rows for head in range(store.heads)), device)
    if isinstance(policy, NAMMPolicy):
        config = policy.memory.config
        _spectrogram(store, ring, segments, fresh, form, config.spectrogram)
        if config.birth:
            arguments, constants = _asking(store, ring, segments, store.column("birth"), form, TOKENS)
            grid = len(segments), -(-fresh // TOKENS)
            launch(birth.birth, grid, *arguments, fresh, *_form(form), **constants, TOKENS=TOKENS, num_warps=8)
    else:
        received: Received = policy.received  # type: ignore[attr-defined]  # see `namm.cache.ragged.serves`
        _received(store, ring, segments, min(fresh, policy.queries or fresh), form, received)


def _spectrogram(
    store: RaggedStore, ring: Ring, segments: Tensor, fresh: int, form: AttentionForm, config: SpectrogramConfig
) -> None:
    state = store.column("spectrogram")
    group = ring.queries.shape[2]
    kind = torch.float32 if ring.queries.dtype == torch.float32 else torch.float16
    arguments, constants = _asking(store, ring, segments, state, form, config.hop)
    launch(
        observation.spectrogram,
        (len(segments), _tiles(store), -(-len(config.ema) // 2)),
        *arguments,
        *transform(config, group, kind, store.device),
        fresh // config.hop,
        *_form(form),
        **constants,
        HOP=config.hop,
        CARRY=config.carry,
        AVERAGES=len(config.ema),
        CHANNELS=config.channels,
        BINS=power_of_two(config.window // 2),
        BANDS=power_of_two(config.channels),
        num_warps=4,
    )


def _received(
    store: RaggedStore, ring: Ring, segments: Tensor, queries: int, form: AttentionForm, received: Received
) -> None:
    column = store.column(received.column)
    pooled = received.pool > 1
    into = torch.empty(store.slots, device=store.device) if pooled else column
    tokens = max(1, 64 // ring.queries.shape[2])
    arguments, constants = _asking(store, ring, segments, into, form, tokens)
    share = 1.0 if received.adds else 1 / queries
    launch(
        observation.received,
        (len(segments), _tiles(store)),
        *arguments,
        queries,
        share / ring.queries.shape[2],
        *_form(form),
        **constants,
        ADDS=received.adds,
        TOKENS=tokens,
        num_warps=4,
    )
    if pooled:
        launch(
            observation.widest,
            (len(segments), -(-max(store.flat_lengths) // 256)),
            into,
            column,
            column.stride(0),
            store.table,
            store.segments,
            segments,
            WIDTH=received.pool,
            SLOTS=256,
        )


def _tiles(store: RaggedStore) -> int:
    return -(-max(store.flat_lengths) // KEYS)


def _form(form: AttentionForm) -> tuple[float, float]:
    return form.scaling, form.softcap or 1.0


def _asking(
    store: RaggedStore, ring: Ring, segments: Tensor, state: Tensor, form: AttentionForm, tokens: int
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and constants that the kernels share, which take the queries of so many tokens at once."""
    keys, positions = store.column("keys"), store.column("positions")
    group, width = ring.queries.shape[2:]
    arguments = [keys, positions, keys.stride(0), positions.stride(0), state, state.stride(0), store.table]
    return arguments + [store.segments, segments, ring.queries, ring.normalisers], {
        "GROUP": group,
        "WIDTH": width,
        "CAPPED": form.softcap is not None,
        "WIDEN": widens(ring.queries.dtype),
        "CAPACITY": ring.capacity,
        "KEYS": KEYS,
        "QUERIES": power_of_two(tokens * group),
        "COLUMNS": power_of_two(width),
    }
