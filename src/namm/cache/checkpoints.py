"""Calls of a model that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.utils.checkpoint import checkpoint

from namm.cache.cache import MemoryCache
from namm.cache.layer import MemoryLayer
from namm.cache.loan import CHECKPOINTED
from namm.cache.serves import UnsupportedModelError
from namm.cache.tape import recomputing

T = TypeVar("T")


def checkpointed(cache: MemoryCache, function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives that calls the cache's model once, with the cache.

    Until the backward pass, which runs it once more, nothing is held of it but what it was given, what it gives, and
    what the cache still holds of its tokens: a long text that is given in pieces takes the memory of one piece, and of
    what is kept. The second time nothing is decided, and the cache stays as it is.

    Args:
        cache: in training, see `MemoryCache.train`.
        function: what it does beside that call can be done twice.
        arguments: of the function; tensors among them may want gradients.

    Raises:
        UnsupportedModelError: if some layers of the cache do not forget.
        ValueError: if the cache is not in training, or the function does not call the model once.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, MemoryLayer)]
    if len(layers) < len(cache.layers):
        raise UnsupportedModelError(CHECKPOINTED)
    tapes = [layer.tape for layer in layers]
    if not tapes[0].keeps:
        raise ValueError("call train() of the cache before a call of the model is checkpointed")
    number = len(tapes[0].calls)

    @contextmanager
    def knowing_the_call() -> Iterator[None]:
        for tape in tapes:
            tape.replayed = number
        try:
            yield
        finally:
            for tape in tapes:
                tape.replayed = None

    def run(*given: Any) -> T:
        if not recomputing():
            return function(*given)
        with knowing_the_call():
            return function(*given)

    found: T = checkpoint(run, *arguments, use_reentrant=False)
    if any(len(tape.calls) != number + 1 for tape in tapes):
        raise ValueError("what is checkpointed has to call the model once, with this cache and with gradients enabled")
    return found
