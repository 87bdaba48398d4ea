"""Steps of decoding between two updates as one CUDA graph."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from namm.cache.cache import MemoryCache
from namm.cache.layer import MemoryLayer

INPUTS = ("input_ids", "position_ids")
PLAIN = (bool, int, float, str, type(None))


class Graph(Protocol):
    """What is launched in one go, again and again."""

    def capture(self, step: Callable[[], Any]) -> Any:
        """Note what a step launches, which is not carried out; its result."""

    def replay(self) -> None:
        """Carry it out."""


class CudaGraph:
    """A graph of CUDA on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def capture(self, step: Callable[[], Any]) -> Any:
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(self.graph, stream=torch.cuda.Stream(self.device)),
        ):
            return step()

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()


@dataclass
class Captured:
    """A step that can be repeated.

    Attributes:
        graph: of it.
        asked: see `GraphedForward`.
        inputs: where the graph reads them.
        output: where it writes.
        places: what the layers hold their tokens in.
        launched: all else that it reads or writes, so that nothing is freed.
    """

    graph: Graph
    asked: Any
    inputs: dict[str, Tensor]
    output: Any
    places: list[Tensor]
    launched: list[Tensor]


class GraphedForward:
    """A model's forward pass that captures steps of decoding with one cache, and else does what it did.

    After an update a step is taken as ever, in which room is made for the tokens until the next one, and constants are
    made; the step after it is captured; the others repeat it, up to the one in which the next update comes. A step that
    asks otherwise than the one before, by other options, shapes or places of what is held, is taken as ever.
    """

    def __init__(self, cache: MemoryCache, forward: Callable[..., Any], make: Callable[[], Graph]) -> None:
        self.cache, self.forward, self.make = cache, forward, make
        self.layers = [layer for layer in cache.layers if isinstance(layer, MemoryLayer)]
        self._names = list(inspect.signature(forward).parameters)
        self.captured: Captured | None = None
        self._before: tuple[Any, list[Tensor]] | None = None

    def __call__(self, *arguments: Any, **given: Any) -> Any:
        given = dict(zip(self._names, arguments, strict=False)) | given
        if given.get("past_key_values") is not self.cache:
            return self.forward(**given)
        self.cache.refuse_switch(1)
        padding = self.cache.padding
        before = padding.visible, padding.now
        asked = self._asked(given)
        if asked is None or not self._plainly_masked(given.get("attention_mask")):
            padding.visible, padding.now = before
            return self._as_ever(given, None)
        places = self._places()
        if self.captured is not None and self.captured.asked == asked and _same(self.captured.places, places):
            for name, into in self.captured.inputs.items():
                into.copy_(self._input(name, given))
            self._count()
        elif self._before is not None and self._before[0] == asked and _same(self._before[1], places):
            self.captured = self._capture(asked, given, places)
        else:
            padding.visible, padding.now = before
            return self._as_ever(given, asked)
        captured = self.captured
        captured.graph.replay()
        made = {name: own.clone() if isinstance(own, Tensor) else own for name, own in captured.output.items()}
        return type(captured.output)(**made)

    def _asked(self, given: dict[str, Any]) -> Any:
        """What a captured step depends on but for its inputs' values; None: can't be one."""
        ids, mask, position = (given.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        rest = {name: own for name, own in given.items() if name not in (*INPUTS, "attention_mask", "past_key_values")}
        engines: list[Any] = [layer.engine for layer in self.layers]
        if (
            not isinstance(ids, Tensor)
            or ids.shape != (len(self.layers[0].rows), 1)
            or not (position is None or isinstance(position, Tensor))
            or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2))
            or not all(isinstance(own, PLAIN) for own in rest.values())
            or torch.is_grad_enabled()
            or any(layer.waits or layer.seen_with_padding != self.layers[0].seen_with_padding for layer in self.layers)
            or min(engine.free() for engine in engines) < 2  # the last token of a block ends in an update
        ):
            return None
        shapes = [self._input(name, given).shape for name in INPUTS]
        return sorted(rest.items(), key=str), shapes, torch.is_inference_mode_enabled()

    def _input(self, name: str, given: dict[str, Any]) -> Tensor:
        if (own := given.get(name)) is not None:
            assert isinstance(own, Tensor)
            return own
        ids: Tensor = given["input_ids"]  # as a model takes positions that it isn't given
        return torch.full((1, 1), self.layers[0].seen_with_padding, device=ids.device)

    def _plainly_masked(self, mask: Tensor | None) -> bool:
        """Note what a mask says; whether that is no more than that the new tokens are real."""
        padding = self.cache.padding
        padding.told(mask, self.layers[0].seen_with_padding, 1)
        return padding.now is None or (padding.now.real is None and padding.now.hidden is None)

    def _as_ever(self, given: dict[str, Any], asked: Any) -> Any:
        self.captured = self._before = None  # frees what an update would else have to be held beside
        output = self.forward(**given)
        fields = set(output.keys()) if hasattr(output, "keys") else set()
        if asked is not None and "logits" in fields and fields <= {"logits", "past_key_values"}:
            self._before = asked, self._places()
        return output

    def _places(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer.engine.places()]  # type: ignore[attr-defined]

    def _count(self) -> None:
        for layer in self.layers:
            layer.engine.repeated()  # type: ignore[attr-defined]
            layer.seen_with_padding += 1

    def _capture(self, asked: Any, given: dict[str, Any], places: list[Tensor]) -> Captured:
        """The step as a graph; it is counted, but not carried out.

        Raises:
            RuntimeError: where that is impossible; the cache is as it was.
        """
        padding, before = self.cache.padding, [layer.seen_with_padding for layer in self.layers]
        counts: list[Any] = [layer.engine.counts() for layer in self.layers]  # type: ignore[attr-defined]
        visible, padding.visible = padding.visible, None  # nothing about masks belongs to the step
        inputs = {name: self._input(name, given).clone() for name in INPUTS}
        rest = {name: own for name, own in given.items() if name not in ("attention_mask", *INPUTS)}
        graph = self.make()
        try:
            with _tensors_launched() as launched:
                output = graph.capture(lambda: self.forward(**rest, **inputs))
        except Exception as error:
            for layer, seen, own in zip(self.layers, before, counts, strict=True):
                layer.forget_handed()
                layer.seen_with_padding = seen
                layer.engine.recount(own)  # type: ignore[attr-defined]
            self.captured = self._before = None
            raise RuntimeError(
                f"a step of decoding can't be captured as a CUDA graph with this model: generate without it ({error})"
            ) from error
        finally:
            padding.visible = visible
        return Captured(graph, asked, inputs, output, places, launched)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def _tensors_launched() -> Iterator[list[Tensor]]:
    """All tensors that kernels are launched with meanwhile."""
    from namm.cache.ragged import launching

    found: list[Tensor] = []

    def note(name: str, grid: Any, arguments: tuple[Any, ...], constants: Any) -> None:
        found.extend(own for own in arguments if isinstance(own, Tensor))

    launching.listeners.append(note)
    try:
        yield found
    finally:
        launching.listeners.remove(note)


@contextlib.contextmanager
def graphed(cache: MemoryCache, make: Callable[[], Graph] | None = None) -> Iterator[None]:
    """While it lasts, steps of decoding with a cache are captured between two updates, and launched as one CUDA graph.

    For the engine "ragged", where the host would else take longer to launch a step than a GPU to compute it. What is
    generated is the same; anything but a step of decoding, and every call with another cache, is as ever.

    Args:
        make: of a graph; None: of CUDA on the model's device.

    Raises:
        ValueError: where that can't be: without a GPU, with another engine, for a policy without updates, for a model
            that is spread over devices or has layers that don't forget.
        RuntimeError: in a step that can't be captured.

    Example:
        >>> with namm.graphed(cache):                                             # doctest: +SKIP
        ...     model.generate(**inputs, past_key_values=cache)
    """
    model = cache.model
    _refuse(cache, {parameter.device for parameter in model.parameters()}, make)
    forward = model.forward
    own = GraphedForward(cache, forward, make or (lambda: CudaGraph(model.device)))

    @wraps(forward)  # generate asks for its signature
    def wrapped(*arguments: Any, **given: Any) -> Any:
        return own(*arguments, **given)

    kept = vars(model).get("forward")
    model.forward = wrapped
    try:
        yield
    finally:
        if kept is None:
            del model.forward
        else:
            model.forward = kept


def _refuse(cache: MemoryCache, devices: set[torch.device], make: Any) -> None:
    if cache.engine != "ragged":
        reason = (
            f"the engine {cache.engine!r} does not make the same launches in every step; make the cache with 'ragged'"
        )
    elif not all(isinstance(layer, MemoryLayer) for layer in cache.layers):
        reason = "layers that don't forget make other launches in every step"
    elif cache.policy.update_interval is None:
        reason = f"policy {cache.policy.name!r} never decides, so that there is no end to the room for tokens"
    elif len(devices) != 1:
        reason = "the model is spread over several devices"
    elif make is None and next(iter(devices)).type != "cuda":
        reason = f"the model is on {next(iter(devices))}, and CUDA graphs are for GPUs"
    else:
        return
    raise ValueError(f"steps of decoding can't be captured: {reason}")
