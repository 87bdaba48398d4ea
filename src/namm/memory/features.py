"""From a head's columns and attention to what the network sees of its tokens (docs/mathematics.md, 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from namm.memory.birth import birth_rows
from namm.memory.config import NAMMConfig
from namm.memory.key_value import key_value_features
from namm.memory.spectrogram import age_features, compress, normalise, update_spectrogram
from namm.support.tensors import steps

SINKS = 4  # first tokens, unlike all others, by which the others are not measured
BOUND = 6.0  # of standardised features
LEAST = 8  # tokens, below which a head has no spread to speak of
SPREAD_FLOOR = 1e-3


def observe(
    columns: Mapping[str, Tensor],
    attention: Tensor,
    new: int,
    config: NAMMConfig,
    spans: Sequence[slice] | None = None,
) -> None:
    """Carry the state columns of a head on by what its tokens were paid and its newest tokens pay.

    Args:
        columns: those of `NAMMConfig.state` and "positions" ``[tokens]``, written in place.
        attention: ``[carry + queries, tokens]``, mean over the group: the last queries of the block before (zeros
            before the first) and this block's.
        new: tokens since the last update, whose own queries the last rows are.
        spans: of several heads side by side, the slots of each; the others have no attention. None: all are one head's.
    """
    spectral = config.spectrogram
    # a block that ended early may be no whole number of hops: the oldest rows go
    signal = attention[(len(attention) - spectral.carry) % spectral.hop :]
    columns["spectrogram"].copy_(update_spectrogram(columns["spectrogram"], signal, spectral))
    if config.birth and (rows := min(new, len(attention) - spectral.carry)):
        spans = [slice(0, attention.shape[1])] if spans is None else spans
        paid, positions = attention[-rows:], columns["positions"]
        for together in _alike(spans):
            birth = birth_rows(
                torch.stack([paid[:, span] for span in together]), torch.stack([positions[span] for span in together])
            ).to(columns["birth"])
            for span, own in zip(together, birth, strict=True):
                columns["birth"][span.stop - rows : span.stop] = own


def observe_padded(
    columns: Mapping[str, Tensor], attention: Tensor, new: int, config: NAMMConfig, end: int, counts: Tensor
) -> None:
    """`observe` of all heads of some batch rows, padded to one length.

    Args:
        columns: contiguous ``[rows, heads, slots, ...]``, the newest token of every head at the slot ``end - 1``.
        attention: ``[carry + queries, rows, heads, slots]``, zero in free slots.
        new: see `observe`.
        counts: tokens of each head, ``[rows, heads]``.
    """
    spectral = config.spectrogram
    signal = attention[(len(attention) - spectral.carry) % spectral.hop :]
    state = columns["spectrogram"].flatten(0, 2)
    state.copy_(update_spectrogram(state, signal.flatten(1), spectral))
    if config.birth and (rows := min(new, len(attention) - spectral.carry)):
        paid = attention[-rows:, ..., :end].permute(1, 2, 0, 3)
        columns["birth"][:, :, end - rows : end] = birth_rows(paid, columns["positions"][..., :end], counts)


def _alike(spans: Sequence[slice]) -> list[list[slice]]:
    """Spans of the same length together."""
    found: dict[int, list[slice]] = {}
    for span in spans:
        found.setdefault(span.stop - span.start, []).append(span)
    return list(found.values())


def observed(columns: Mapping[str, Tensor], config: NAMMConfig, counts: Tensor | None = None) -> Tensor:
    """What is known of every token beside its age: spectrogram, birth row, key and value, as the configuration has it.

    Args:
        columns: those of `NAMMConfig.state`, "keys" and "values"; heads may come before the tokens.
        counts: ``[...]``, of each head how many of the last tokens there are, the others being zero; None: all.

    Returns:
        ``[..., tokens, config.observed]`` float32.
    """
    parts = [compress(columns["spectrogram"].float(), config.spectrogram).flatten(-2)]
    if config.birth:
        parts.append(columns["birth"].float())
    if config.key_value:
        parts.append(key_value_features(columns["keys"], columns["values"], counts))
    return torch.cat(parts, dim=-1)


def network_features(
    found: Tensor, ages: Tensor, config: NAMMConfig, mean: Tensor, variance: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Age features, then what was observed: as it is, by fixed statistics, or within the head with its levels beside.

    Args:
        found: ``[..., tokens, config.observed]`` of heads, see `observed`.
        ages: ``[..., tokens]`` integers, 0 for the newest.
        mean, variance: ``[config.observed]``, fixed.
        counts: see `observed`.

    Returns:
        ``[..., tokens, config.features]`` float32.
    """
    if not config.standardised:
        seen = [normalise(found, mean, variance) if config.normalised else found]
    else:
        relative, level = within_head(found, counts)
        seen = [relative, (normalise(level, mean, variance) if config.normalised else level).expand_as(relative)]
    return torch.cat([age_features(ages), *seen], dim=-1)


def within_head(found: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features relative to the head's own: ``clamp((f - mean) / deviation, -6, 6)``, and the means, its levels.

    Heads and models differ in level and spread by far more than tokens differ in need. The first four tokens are
    attention sinks in many models and do not count.

    Args:
        found: ``[..., tokens, observed]``.
        counts: see `observed`.

    Returns:
        ``[..., tokens, observed]`` and ``[..., 1, observed]``.
    """
    tokens, newest = found.shape[-2], found[..., -1:, :]
    found = found - newest  # what is the same for all tokens is exactly so
    if counts is None:
        others = found[..., SINKS:, :] if tokens >= SINKS + LEAST else found
        level = others.mean(-2, keepdim=True)
        variance = (others - level).square().mean(-2, keepdim=True)
    else:
        sinks = SINKS * (counts >= SINKS + LEAST)
        others = steps(tokens, found.device) >= (tokens - counts + sinks)[..., None]
        weights = (others / (counts - sinks)[..., None]).unsqueeze(-2)
        level = weights @ found
        variance = weights @ (found - level).square()
    spread = variance.sqrt().clamp_min(SPREAD_FLOOR)
    return ((found - level) / spread).clamp(-BOUND, BOUND), level + newest
