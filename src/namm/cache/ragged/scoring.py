"""Scores of all tokens of a store, ``[slots]``, for all heads and batch rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from namm.cache.ragged.kernels import scoring
from namm.cache.ragged.launching import launch, power_of_two
from namm.cache.ragged.store import RaggedStore
from namm.memory import NAMM
from namm.memory.birth import BIRTH_FEATURES
from namm.memory.network import unflatten
from namm.memory.spectrogram import AGE_BASE, AGE_FEATURES
from namm.policies import NAMMPolicy
from namm.policies.base import REHEARSED, BudgetPolicy
from namm.policies.grid import Grid

SLOTS = 32  # tokens of a program
JUDGED = 64  # of one that looks at newer ones


@lru_cache(maxsize=8)
def frequencies(device: torch.device) -> Tensor:
    """Of the ages, float64."""
    with torch.inference_mode(False):
        k = torch.arange(AGE_FEATURES // 2, dtype=torch.float64)
        return (AGE_BASE ** (-k / (AGE_FEATURES // 2))).to(device)


def rule_scores(policy: BudgetPolicy, store: RaggedStore, grid: Grid) -> Tensor:
    """Scores by a rule: of every slot, since it asks nothing of others."""
    flat = {name: column[None, None] for name, column in store.columns.items()}
    grid = Grid(grid.layer, [0], flat, [[store.slots]], [0], [0], [0], [None], grid.whole)
    return policy.scores_grid(grid)[0, 0].to(torch.float32).contiguous()


def memory_scores(policy: NAMMPolicy, store: RaggedStore, asked: Tensor) -> Tensor:
    """Scores by a memory: of the first `asked` ``[segments]`` int32 tokens of every head; 0 for its others."""
    memory = policy.memory_on(store.device)
    config = memory.config
    tiles = max(1, -(-max(store.flat_lengths) // SLOTS))
    grid = store.segments, tiles
    keys, values, positions = (store.column(name) for name in ("keys", "values", "positions"))
    state = store.column("spectrogram")
    births = store.column("birth") if config.birth else state
    columns, features = power_of_two(max(keys.shape[1], values.shape[1])), power_of_two(config.observed)
    tensors: dict[str, Any] = {"dtype": torch.float32, "device": store.device}
    summed = torch.empty(store.segments, tiles, 2, columns, **tensors)
    levels = torch.empty(store.segments, tiles, 2, features, **tensors)
    found = torch.empty(store.slots, config.observed, **tensors)
    widths = {"WIDTH": keys.shape[1], "VALUE": values.shape[1], "SLOTS": SLOTS, "COLUMNS": columns}
    if config.key_value:
        launch(scoring.sums, grid, keys, values, keys.stride(0), store.table, asked, summed, **widths, num_warps=4)
    launch(
        scoring.known,
        grid,
        keys,
        values,
        keys.stride(0),
        state,
        state.stride(0),
        births,
        births.stride(0),
        store.table,
        asked,
        summed,
        tiles,
        found,
        levels,
        **widths,
        SPECTRAL=len(config.ema) * config.spectrogram.channels,
        BIRTH=BIRTH_FEATURES if config.birth else 0,
        OBSERVED=config.observed,
        LOG=config.compression == "log",
        KEY_VALUE=config.key_value,
        STANDARDISED=config.standardised,
        FEATURES=features,
        num_warps=8,
    )
    return _network(policy, memory, store, asked, found, levels, positions, grid)


def _network(
    policy: NAMMPolicy,
    memory: NAMM,
    store: RaggedStore,
    asked: Tensor,
    found: Tensor,
    levels: Tensor,
    positions: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """Scores from what is observed of every token, ``[slots, observed]``, and the levels of its head."""
    config = memory.config
    weights: Mapping[str, Tensor] = unflatten(memory.flat, config.features, config.hidden)
    tensors: dict[str, Any] = {"dtype": torch.float32, "device": store.device}
    seen = torch.empty(store.slots, config.features, **tensors)
    projected = torch.empty(store.slots, 3 * config.hidden, **tensors)
    scores = torch.empty(store.slots, **tensors)
    padded = power_of_two(config.features)
    launch(
        scoring.project,
        grid,
        found,
        levels,
        levels.shape[1],
        positions,
        positions.stride(0),
        store.table,
        asked,
        frequencies(store.device),
        memory.mean,
        memory.variance,
        weights["attention.qkv.weight"],
        weights["attention.qkv.bias"],
        seen,
        projected,
        OBSERVED=config.observed,
        STANDARDISED=config.standardised,
        NORMALISED=config.normalised,
        PIECE=SLOTS,
        PADDED=levels.shape[3],
        SEEN=config.features,
        HIDDEN=3 * config.hidden,
        SLOTS=SLOTS,
        FEATURES=padded,
        INNER=16,
        num_warps=4,
    )
    rehearsed = store.column(REHEARSED) if policy.rehearsed else scores
    power, shift = config.influence or (0.0, 0.0)
    launch(
        scoring.judge,
        (store.segments, max(1, -(-max(store.flat_lengths) // JUDGED))),
        seen,
        projected,
        store.table,
        store.segments,
        asked,
        weights["attention.output.weight"],
        weights["attention.output.bias"],
        weights["score.weight"],
        weights["score.bias"],
        rehearsed,
        rehearsed.stride(0),
        power,
        shift,
        scores,
        (config.hidden // config.heads) ** -0.5,
        config.reach or 0,
        SEEN=config.features,
        HIDDEN=config.hidden,
        HEADS=config.heads,
        BOUNDED=config.reach is not None,
        REHEARSED=policy.rehearsed and config.influence is not None,
        TOKENS=JUDGED,
        KEYS=64,
        FEATURES=padded,
        INNER=power_of_two(config.hidden // config.heads),
        num_warps=8,
    )
    return scores
