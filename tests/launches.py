"""Counts what a GPU would be told: kernels of the engine `ragged`, and those of PyTorch around them."""

from __future__ import annotations

from typing import Any

import torch
from operations import Operations
from torch.utils._python_dispatch import _disable_current_modes


class Launches:
    """Counts while it lasts, under ``no_grad``.

    Attributes:
        kernels: name, grid, arguments and constants of each launch. operations: of PyTorch, see `Operations`.
    """

    def __init__(self) -> None:
        self.kernels: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []
        self.operations = Operations()

    def __enter__(self) -> Launches:
        from namm.cache.ragged import launching

        launching.listeners.append(self._launched)
        self._run = run = launching.run

        def silently(*arguments: Any) -> None:  # the interpreter handles tensors by itself
            with _disable_current_modes():
                run(*arguments)

        launching.run = silently
        self.operations.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        from namm.cache.ragged import launching

        self.operations.__exit__(*exception)
        launching.run = self._run
        launching.listeners.remove(self._launched)

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
        known = [engine.store.records, engine.store.table, engine.ring.queries, engine.ring.normalisers, *given]
        storages = {tensor.untyped_storage().data_ptr() for tensor in known}

        def word(argument: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return repr(argument)
            own = argument.untyped_storage().data_ptr() in storages
            return [list(argument.shape), list(argument.stride()), argument.data_ptr() if own else "passing"]

        return [[name, grid, list(map(word, args)), repr(options)] for name, grid, args, options in self.kernels]
