"""A cache that goes on in several ways from what it holds."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from namm.cache.layer import MemoryLayer
from namm.policies.base import Policy

if TYPE_CHECKING:
    from namm.cache.cache import MemoryCache

REPLACED = DynamicLayer, DynamicSlidingWindowLayer  # their tensors are replaced, never written to


@torch.inference_mode()
def branch(model: PreTrainedModel, cache: MemoryCache, policy: Policy) -> MemoryCache:
    """A cache that goes on from what a model's cache holds, under a policy that may be another.

    It is as if it had read the same tokens under its own policy, if neither had to let go of one of them and both
    observe in the same way. Layers that its policy compares, and the other one did not, are compared after the next
    forward pass or in `MemoryCache.settle`. Tokens are shared where the engine can, see `Engine.under`.
    """
    made = type(cache)(model, policy, cache.engine, cache.bits)
    made.padding.visible = cache.padding.visible
    for number, (layer, source) in enumerate(zip(made.layers, cache.layers, strict=True)):
        if isinstance(layer, MemoryLayer) and isinstance(source, MemoryLayer):
            layer.continue_from(source)
        else:
            made.layers[number] = copy.copy(source) if type(source) in REPLACED else copy.deepcopy(source)
    return made
