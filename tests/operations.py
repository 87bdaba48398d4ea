"""Counts what PyTorch is asked to compute: each is a kernel to launch, or a call that a CPU has to prepare."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = set(
    """_reshape_alias _unsafe_view alias as_strided chunk detach detach_ diagonal expand permute select slice split
    split_with_sizes squeeze t transpose unbind unfold unsqueeze view""".split()  # noqa: SIM905
)
NO_KERNEL = set("_local_scalar_dense empty empty_like empty_strided lift_fresh new_empty promote_types".split())  # noqa: SIM905


class Operations(TorchDispatchMode):
    """Counts operations by name while it lasts; under ``no_grad``, since inference mode hides what an operation is made
    of.

    Attributes:
        found: of each name how many. computed: all but views, allocations and what is read from or written by the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def computed(self) -> int:
        return sum(count for name, count in self.found.items() if name not in VIEWS | NO_KERNEL)
