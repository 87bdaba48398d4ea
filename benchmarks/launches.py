"""Counts what a GPU would be told: operations of PyTorch, each a kernel, and kernels of the engine `ragged`.

On a CPU an operation is a call that has to be prepared. Kernels need not be run to be counted, nor be able to.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

VIEWS = set(
    """_reshape_alias _unsafe_view alias as_strided chunk detach detach_ diagonal expand permute select slice split
    split_with_sizes squeeze t transpose unbind unfold unsqueeze view""".split()  # noqa: SIM905
)
NO_KERNEL = set("_local_scalar_dense empty empty_like empty_strided lift_fresh new_empty promote_types".split())  # noqa: SIM905


class Operations(TorchDispatchMode):
    """Counts operations by name while it lasts; under ``no_grad``, since inference mode hides what an operation is made
    of.

    Attributes:
        found: of each name how many.
        computed: all but views, allocations and what is read from or written by the host.
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


class Launches:
    """Counts while it lasts, under ``no_grad``; without Triton operations only.

    Attributes:
        kernels: name, grid, arguments and constants of each launch.
        operations: of PyTorch, see `Operations`.
    """

    def __init__(self) -> None:
        self.kernels: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []
        self.operations = Operations()

    def __enter__(self) -> Launches:
        with contextlib.ExitStack() as stack:
            if (launching := launching_module()) is not None:
                launching.listeners.append(self._launched)
                stack.callback(launching.listeners.remove, self._launched)
                run = launching.run

                def silently(*arguments: Any) -> None:  # the interpreter handles tensors by itself
                    with _disable_current_modes():
                        run(*arguments)

                stack.enter_context(mock.patch.object(launching, "run", silently))
            stack.enter_context(self.operations)
            self._ends = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ends.__exit__(*exception)

    def _launched(self, *told: Any) -> None:
        self.kernels.append(told)

    @property
    def total(self) -> int:
        """Kernels and operations, and copies to the device beside them."""
        return len(self.kernels) + self.operations.computed + self.operations.found["lift_fresh"]

    @property
    def waits(self) -> int:
        """Copies from the device that the host waits for, however many numbers there are."""
        return len({name for name in ("_local_scalar_dense",) if self.operations.found[name]})

    def __repr__(self) -> str:
        return f"{[name for name, *_ in self.kernels]} and {dict(self.operations.found)}"

    def told(self, engine: Any, given: list[torch.Tensor]) -> list[Any]:
        """All arguments but where outputs and what lies between two launches are, as words."""
        known = [*engine.places(), *given]
        storages = {tensor.untyped_storage().data_ptr() for tensor in known}

        def word(argument: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return repr(argument)
            own = argument.untyped_storage().data_ptr() in storages
            return [list(argument.shape), list(argument.stride()), argument.data_ptr() if own else "passing"]

        return [[name, grid, list(map(word, args)), repr(options)] for name, grid, args, options in self.kernels]


def launching_module() -> Any:
    """Where kernels are launched; None without Triton."""
    try:
        from namm.cache.ragged import launching
    except ImportError:
        return None
    return launching


@contextlib.contextmanager
def without_running(instead: Any = lambda *launch: None) -> Iterator[None]:
    """Nothing that is launched is run, on any device: of every head half of the tokens stay, and outputs are anything.

    Args:
        instead: called with the kernel, its grid, arguments and constants.
    """
    from namm.cache.ragged import engine, launching

    def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        _bookkeeping(kernel.__name__, dict(zip(kernel.arg_names, arguments, strict=False)) | constants)
        instead(kernel, grid, arguments, constants)

    nothing = {"check_device": lambda device: None}
    with mock.patch.multiple(launching, run=run, **nothing), mock.patch.multiple(engine, **nothing):
        yield


def _bookkeeping(kernel: str, given: dict[str, Any]) -> None:
    """What a kernel does to the numbers by which the host goes on, see `namm.cache.ragged.kernels`."""
    if kernel == "append":
        given["table"][2] = given["table"][1] + given["new"].repeat_interleave(given["HEADS"])
    elif kernel == "attend":
        given["table"][1] = given["table"][2]
    elif kernel == "order":
        given["answer"][0], given["answer"][1] = (given["table"][2] + 1) // 2, 0
