"""Shapes, columns and reductions that the rest of the library shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

SEGMENT = 64  # slots of a head come in such pieces; 512 would be 40% of a small cache


def round_up(tokens: int) -> int:
    """Slots for so many tokens: in steps of `SEGMENT`, or smaller steps where those would be most of what is held.

    On a CPU a low-precision matrix product is compiled anew for every shape it meets, which costs more than the product
    itself; with lengths rounded up, shapes recur.

    >>> [round_up(tokens) for tokens in (3, 13, 100, 300)]
    [4, 16, 112, 320]
    """
    step = SEGMENT if tokens > 4 * SEGMENT else SEGMENT // 4 if tokens > SEGMENT else SEGMENT // 16
    return -(-tokens // step) * step


@dataclass(frozen=True)
class Column:
    """One more value per token, stored and forgotten with it; zero for new tokens.

    Attributes:
        shape: of a token's.
        dtype: of the numbers.
        bounds: between which they lie, where a byte is enough for each; see `namm.cache.codes`.
    """

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    bounds: tuple[float, float] | None = None


@lru_cache(maxsize=256)
def band(rows: int, columns: int, first: int, last: int, device: torch.device) -> Tensor:
    """``[rows, columns]`` bool, True outside of the diagonals `first` to `last`; made once, not to be written to.

    >>> band(2, 3, 0, 1, torch.device("cpu")).int()
    tensor([[0, 0, 1],
            [1, 0, 0]], dtype=torch.int32)
    """
    with torch.inference_mode(False):  # also used where gradients are wanted
        whole = torch.ones(rows, columns, dtype=torch.bool, device=device)
        return whole.tril(first - 1) | whole.triu(last + 1)


@lru_cache(maxsize=32)
def _steps(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(count, device=device)


def steps(count: int, device: torch.device) -> Tensor:
    """``torch.arange(count)``, a view of one that is made once; not to be written to."""
    return _steps(1 << max(8, (count - 1).bit_length()), device)[:count]


def runs(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Indices ``[sum(counts)]`` int64: of each run so many from its start on, one run behind the other.

    >>> runs([5, 0, 20], [2, 0, 3], torch.device("cpu"))
    tensor([ 5,  6, 20, 21, 22])
    """
    total, before = sum(counts), accumulate((0, *counts[:-1])) if counts else ()
    told = torch.tensor([[start - gone for start, gone in zip(starts, before, strict=True)], [*counts]], device=device)
    return torch.repeat_interleave(told[0], told[1], output_size=total).add_(steps(total, device))


def mean_of(parts: Tensor, into: Tensor | None = None) -> Tensor:
    """Mean over a short first dimension: ``[parts, ...]`` to ``[...]``, in the input's dtype.

    PyTorch's own takes up to a hundred times longer on a CPU.

    Args:
        into: ``[...]``, is filled and returned.
    """
    into = torch.empty_like(parts[0]) if into is None else into
    if len(parts) == 1:
        return into.copy_(parts[0])
    torch.add(parts[0], parts[1], out=into)
    for part in parts[2:]:
        into += part
    return into.div_(len(parts))


def column_sum(rows: Tensor) -> Tensor:
    """``[rows, columns]`` to ``[columns]`` float32."""
    return (torch.ones(1, len(rows), device=rows.device) @ rows.float())[0]


def writable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode where that is over: torch forbids writing to it."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor
