"""What nobody needs any more is freed at once, without a collection of garbage, which may be long in coming."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.together import Together, step
from namm.policies import H2O, NAMMPolicy

POLICY = NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=32, influence=(0.7, -3.0))), kept=0.5)


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def read(model: PreTrainedModel, ids: Tensor, **options: object) -> MemoryCache:
    cache = MemoryCache(model, POLICY, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        cache.settle()
    return cache


def rehearsed(model: PreTrainedModel, ids: Tensor) -> MemoryCache:
    cache = MemoryCache(model, replace(POLICY, rehearsed=True))
    cache.rehearse(ids, ids[0, :5])
    return cache


def with_gradients(model: PreTrainedModel, ids: Tensor) -> MemoryCache:
    cache = MemoryCache(model, H2O(0.5, 32))
    model(ids, past_key_values=cache).logits.sum().backward()
    model.zero_grad()
    return cache


def fork(model: PreTrainedModel, ids: Tensor) -> MemoryCache:
    text = read(model, ids, bits=4)
    forks = [text.fork(), text.fork()]
    with torch.inference_mode():
        step(model, Together(forks), torch.tensor([[3], [4]]))
    return forks[0]


WAYS = {
    "read": read,
    "in few bits": lambda model, ids: read(model, ids, bits=4),
    "padded": lambda model, ids: read(model, ids, engine="padded"),
    "fork": fork,
    "rehearsed": rehearsed,
    "with gradients": with_gradients,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_goes_when_its_last_name_goes(
    wild: PreTrainedModel, ids: Tensor, way: str, no_collection: None
) -> None:
    make: Callable[..., MemoryCache] = WAYS[way]
    cache = make(wild, ids[:, :100])
    held = [weakref.ref(layer) for layer in cache.layers]
    held += [weakref.ref(layer.engine) for layer in cache._forgetting]
    assert all(own() is not None for own in held)
    del cache
    assert [own() for own in held] == [None] * len(held)
