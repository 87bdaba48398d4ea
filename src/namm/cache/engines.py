"""The engines by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel

from namm.cache.codes import BITS
from namm.cache.engine import Engine
from namm.cache.loops import Loops
from namm.cache.padded import Padded
from namm.cache.ragged.serves import check_device, lacks, ragged
from namm.models.rope import Rotary
from namm.policies.base import Policy

Maker = Callable[[Policy, int, Rotary | None], Engine]
ENGINES: dict[str, Maker] = {"loops": Loops, "padded": Padded, "ragged": ragged}


def engine_of(name: str, policy: Policy, model: PreTrainedModel, bits: int | None = None) -> tuple[str, Maker]:
    """The engine of that name, or another one, with a warning, where it can't serve the policy or the model; and its
    name.

    Raises:
        ValueError: if there is none of that name, or tokens are not packed to so many bits.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name != "loops" and not policy.takes_grids:
        warnings.warn(
            f"{type(policy).__name__} decides head by head, so the engine is 'loops' and not {name!r}", stacklevel=3
        )
        name = "loops"
    if bits is not None and bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))} or None, got {bits!r}")
    if name == "ragged":
        check_device(model.device)
        if lacking := lacks(policy, model.dtype):
            warnings.warn(f"the engine is 'padded' and not 'ragged', which has {lacking}", stacklevel=3)
            name = "padded"
    made: Callable[..., Engine] = ENGINES[name]
    return name, made if bits is None else partial(made, bits=bits)
