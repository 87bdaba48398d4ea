"""The arithmetic of few bits: of every token, whole numbers between the bounds of each group of its channels.

    code = round((x - low) / (high - low) * (2^bits - 1))

asymmetrically and token by token, as KIVI (arXiv 2402.02750) has it for values. So that channels may share bounds, they
are turned by a Hadamard matrix first, which spreads large ones over all (QuaRot, arXiv 2404.00456); and before that, as
keys differ from channel to channel, the channels of a head's keys are brought to one centre and nearer to one size, by
the root of theirs (SmoothAttention in QServe, arXiv 2405.04532), see `frames_of`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from namm.support.tensors import Column

BITS = 4, 8
GROUP = 64  # channels that share bounds, at most
BOUNDS = torch.bfloat16


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and bounds.

    Args:
        x: ``[tokens, width]`` float32 or float64.

    Returns:
        ``[tokens, bytes]`` uint8, two codes of 4 bits in one, and ``[tokens, groups, 2]`` bfloat16.
    """
    if x.shape[1] % 2:
        raise ValueError(f"heads of odd width ({x.shape[1]}) can't be packed: leave bits out")
    grouped = x.unflatten(1, (-1, group_of(x.shape[1])))
    (least, smallest), (largest, greatest) = grouped.min(-1), grouped.max(-1)
    bounds = torch.stack([least, largest], dim=-1).to(BOUNDS)
    low, high = bounds.to(x.dtype).split(1, dim=-1)
    most = 2**bits - 1
    codes = ((grouped - low) / (high - low).clamp_min(1e-30) * most).round_().clamp_(0, most)
    # both bounds are attained however they were rounded, so that packing again finds the same
    codes.scatter_(-1, greatest[..., None], most).scatter_(-1, smallest[..., None], 0)
    codes = (codes * (high > low)).flatten(1).byte()
    return (codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4), bounds


def decode(codes: Tensor, bounds: Tensor, bits: int) -> Tensor:
    """``[tokens, width]`` float32, from what `encode` made of it."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
    low, high = bounds.float().split(1, dim=-1)
    grouped = codes.unflatten(1, (bounds.shape[1], -1)).float()
    return torch.addcmul(low, grouped, (high - low) / (2**bits - 1)).flatten(1)


def group_of(width: int) -> int:
    """Channels of a group: all groups are equally large."""
    return next(size for size in range(min(GROUP, width), 0, -1) if width % size == 0)


def turned(x: Tensor) -> Tensor:
    """``[tokens, width]`` times a Hadamard matrix for every block of channels, which is its own inverse."""
    block = x.shape[1] & -x.shape[1]  # the largest power of two in it
    return (x.unflatten(1, (-1, block)) @ hadamard(block, x.device, x.dtype)).flatten(1)


@lru_cache(maxsize=16)
def hadamard(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[size, size]``, symmetric and orthogonal; the size is a power of two."""
    with torch.inference_mode(False):
        found = torch.ones(1, 1, device=device, dtype=dtype)
        while len(found) < size:
            found = torch.cat([torch.cat([found, found], dim=1), torch.cat([found, -found], dim=1)])
        return found * size**-0.5


def precise(device: torch.device) -> torch.dtype:
    """The type in which codes are found, so that these do not hang on how many heads are coded together: rounding of
    float32 would now and then move one by a step."""
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs lack


def frames_of(keys: Tensor, heads: Tensor, count: int) -> Tensor:
    """Centre of each channel of each head's keys and the root of its deviation, ``[2, count, width]`` float32.

    Args:
        keys: ``[tokens, width]``. heads: whose they are, ``[tokens]`` int64; a head without any gets `no_frames`.
    """
    x, empty = keys.to(precise(keys.device)), no_frames(count, keys)
    tokens = torch.zeros(count, dtype=x.dtype, device=x.device).index_add_(0, heads, torch.ones_like(x[:, 0]))[:, None]
    sums = x.new_zeros(count, x.shape[1])
    centre = sums.index_add(0, heads, x) / tokens.clamp_min(1)
    spread = sums.index_add(0, heads, (x - centre.index_select(0, heads)).square_()) / tokens.clamp_min(1)
    found = torch.stack([centre, spread.sqrt().clamp_min(1e-6).sqrt()]).float()
    return torch.where(tokens > 0, found, empty)


def no_frames(count: int, keys: Tensor) -> Tensor:
    """Of heads whose keys ``[tokens, width]`` are left as they are."""
    frame = torch.zeros(2, count, keys.shape[1], device=keys.device)
    frame[1] = 1
    return frame


def to_byte(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Numbers as uint8, evenly between bounds."""
    assert bounds is not None
    return ((x.float() - bounds[0]) * (255 / (bounds[1] - bounds[0]))).round_().clamp_(0, 255).byte()


def from_byte(codes: Tensor, column: Column) -> Tensor:
    """From what `to_byte` made of a column."""
    assert column.bounds is not None
    low, high = column.bounds
    return (low + codes.float() * ((high - low) / 255)).to(column.dtype)
