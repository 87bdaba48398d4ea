"""A graph as CUDA's, without a GPU: what a step launches is noted with all its arguments, and done again later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from launches import VIEWS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "lift_fresh", "nonzero"}  # of the host for the device, or pageable memory copied to it


class Tape(TorchDispatchMode):
    """As `namm.cache.graphs.CudaGraph`: Python is not run again, and every number and address stays what it was.

    A captured step is not carried out: what it wrote is put back.

    Attributes:
        made: all tapes since it was cleared.
        replays: how often it was replayed.
        launched: addresses of all tensors that kernels were launched with, at the capture and in every replay.
    """

    made: list[Tape] = []

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self.replays = 0
        self.launched: list[list[int]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made.append(self)

    def capture(self, step: Callable[[], Any]) -> Any:
        from namm.cache.ragged import launching

        run = launching.run
        self.launched.append([])

        def note(*launch: Any) -> None:
            with _disable_current_modes():
                tensors = [own for own in launch[2] if isinstance(own, Tensor)]
                for own in tensors:
                    self._remember(own)
                self.launched[0] += [own.data_ptr() for own in tensors]

                def again() -> None:
                    self.launched[-1].extend(own.data_ptr() for own in tensors)
                    run(*launch)

                run(*launch)
                self.notes.append((again, []))

        with mock.patch.object(launching, "run", note), self:
            output = step()
        for held, before in self._before.values():
            held.copy_(before)
        return output

    def replay(self) -> None:
        self.replays += 1
        self.launched.append([])
        for again, outputs in self.notes:
            made = [own for own in tree_leaves(again()) if isinstance(own, Tensor)]
            for into, own in zip(outputs, made, strict=True):
                if into.data_ptr() != own.data_ptr():
                    into.copy_(own)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in WAITS:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        for argument, own in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(own)
        output = func(*args, **kwargs)
        if name not in VIEWS:
            outputs = [own for own in tree_leaves(output) if isinstance(own, Tensor)]
            self.notes.append((lambda: func(*args, **kwargs), outputs))
        return output

    def _remember(self, tensor: Tensor) -> None:
        """What a tensor's storage holds before it is first written to."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._before:
            held = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._before[storage.data_ptr()] = held, held.clone()
