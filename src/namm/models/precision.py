"""Which floating-point type a device computes fastest in without harm."""

from __future__ import annotations

from typing import Any

import torch


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16, but float32 on an x86 processor without bfloat16 instructions, where emulating them takes five times as
    long (SmolLM2-135M's prefill on two cores with AVX2 only: 74 tokens a second against 360).

    Args:
        device: where the model will run; None: the CPU.
    """
    if device is not None and torch.device(device).type != "cpu":
        return torch.bfloat16
    report = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.12
    found: dict[str, Any] = report() if report is not None else {}
    emulated = found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.float32 if emulated else torch.bfloat16


SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A type of weights by its name, also by a short one such as ``bf16``.

    Raises:
        ValueError: if it is no floating-point type.
    """
    found = getattr(torch, SHORT.get(dtype, dtype), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be 'auto' or a floating-point type such as 'float32', not {dtype!r}.")
    return found


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if it is there.

    Raises:
        ValueError: if there is no such device on this machine.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is none that torch knows: {str(error).partition(chr(10))[0]}") from None
    if found.type in ("cpu", "meta"):
        return found
    backend: Any = getattr(torch, found.type, None)
    count = backend.device_count() if backend is not None and hasattr(backend, "device_count") else 0
    if count == 0:
        raise ValueError(f"there is no {found.type} device here (or a torch without it is installed): use 'cpu'")
    if found.index is not None and found.index >= count:
        raise ValueError(f"there is no device {found}: {found.type} devices here end at {count - 1}")
    return found
