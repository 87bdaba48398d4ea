"""How a kernel is launched, and where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from namm.cache.ragged.kernels import attention

listeners: list[Callable[[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]], object]] = []
"""Told of every launch: the kernel's name, its grid, its arguments and its constants."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel, and tell of it; nothing for an empty grid."""
    if 0 in grid:
        return
    for tell in listeners:
        tell(kernel.__name__, grid, arguments, constants)
    run(kernel, grid, arguments, constants)


def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run a kernel on the device of its first tensor."""
    device = next(one.device for one in arguments if isinstance(one, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


def interpreted() -> bool:
    """Whether the kernels run on the CPU, in Triton's interpreter."""
    return type(attention.append).__name__ == "InterpretedFunction"


def check_device(device: torch.device) -> None:
    """Raises ValueError where kernels can't run on a device."""
    if device.type == "cpu" and not (interpreted() or knobs.runtime.interpret):
        raise ValueError(
            "the engine 'ragged' needs a GPU; on a CPU it can only be checked, slowly, with TRITON_INTERPRET=1 set "
            "before namm is imported"
        )


def widens(dtype: torch.dtype) -> bool:
    """Whether products are to be taken in float32, since the interpreter has none of this type."""
    return interpreted() and dtype == torch.bfloat16


def power_of_two(size: int, least: int = 16) -> int:
    """The next one; matrix products take no fewer than 16 columns."""
    return max(least, 1 << (size - 1).bit_length())


@lru_cache(maxsize=512)
def numbers(found: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as int32 on a device, made once; not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(found, dtype=torch.int32, device=device)


def to_device(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Whole numbers ``[rows, n]`` as int32, without waiting for the device."""
    made = torch.tensor(rows, dtype=torch.int32)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made
