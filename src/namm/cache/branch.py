"""A cache that goes on in several ways: copies of what it holds, each under a policy of its own."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from namm.cache.cache import MemoryCache
from namm.cache.layer import MemoryLayer
from namm.policies.base import Policy


@torch.inference_mode()
def branch(model: PreTrainedModel, cache: MemoryCache, policy: Policy) -> MemoryCache:
    """A copy of a model's cache of one batch row without padding, under another policy.

    The copy is as if it had read the same tokens under its own policy, if neither had to let go of one of them and both
    observe in the same way. Layers that its policy compares, and the other one did not, are compared after the next
    forward pass or in `MemoryCache.settle`.
    """
    made = MemoryCache(model, policy)
    for number, (layer, source) in enumerate(zip(made.layers, cache.layers, strict=True)):
        if isinstance(layer, MemoryLayer) and isinstance(source, MemoryLayer):
            layer.continue_from(source)
        else:
            made.layers[number] = copy.deepcopy(source)
    return made
