"""Triton kernels. All take the table of a store: int32 rows STARTS, BASES, ENDS, GAPS, HEALTH, one column a segment.

A segment holds the tokens of one KV head of one batch row, oldest first, from slot ``STARTS`` on. Before the call's new
tokens there are ``BASES`` of them, with these ``ENDS``; a token's index and its position differ by ``GAPS`` where it is
new. ``HEALTH`` is 0 unless attention (1) or a score (2) was no number.
"""

from collections.abc import Callable
from typing import Any

import triton
from triton import knobs


def part(function: Callable[..., Any]) -> Any:
    """A function that kernels call; the interpreter runs it as plain Python, since there a call of a kernel is slow."""
    return function if knobs.runtime.interpret else triton.jit(function)
