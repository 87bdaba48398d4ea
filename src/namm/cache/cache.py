"""A transformers cache whose full-attention layers forget."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, get_layer_types_and_kwargs

from namm.cache.handover import IMPLEMENTATION, UnsupportedModelError
from namm.cache.layer import MemoryLayer
from namm.cache.padding import PaddingMask
from namm.cache.stats import CacheStats, collect
from namm.memory import NAMM
from namm.policies import NAMMPolicy
from namm.policies.base import Policy

CANNOT_ROLL_BACK = (
    "a cache that forgets can't be rolled back, so assisted decoding and prompt lookup can't use it; call generate "
    "without assistant_model and prompt_lookup_num_tokens"
)


class MemoryCache(Cache):
    """A cache for ``model(...)`` and ``model.generate(..., past_key_values=cache)`` that keeps what its policy wants.

    Every KV head of every full-attention layer and batch row keeps tokens of its own, and the memory of the others is
    freed. Positions stay true. Layers of other kinds (sliding windows, linear attention) get transformers' own cache.

    Args:
        model: any transformers decoder that goes through the attention interface. Its attention implementation is set
            to this library's, which equals sdpa for every other cache, so the model can be used as before.
        policy: a `Policy`, or a `NAMM` to be used as it is.

    Raises:
        UnsupportedModelError: if the model can't be served.
        TypeError: if `policy` is neither a policy nor a memory.

    Example:
        >>> cache = MemoryCache(model, memory)                                   # doctest: +SKIP
        >>> out = model.generate(**inputs, past_key_values=cache)                # doctest: +SKIP
        >>> print(cache.stats())                                                 # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, policy: Policy | NAMM) -> None:
        if isinstance(policy, NAMM):
            policy = NAMMPolicy(policy)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a namm.policies.Policy or a namm.NAMM, got {type(policy).__name__}")
        self.policy = policy
        types, arguments = layer_kinds(model.config, type(model).__name__)
        if policy.update_interval is not None and policy.update_interval < max(1, policy.carry):
            raise ValueError(
                f"policy {policy.name!r} has the update interval {policy.update_interval}; it must be at least 1 "
                f"and not below its carry ({policy.carry})"
            )
        use_memory_attention(model)
        padding = PaddingMask()
        super().__init__(
            layers=[
                MemoryLayer(index, policy, padding)
                if kind == "full_attention"
                else DYNAMIC_LAYER_TYPE_MAPPING[kind](**options)
                for index, (kind, options) in enumerate(zip(types, arguments, strict=True))
            ]
        )

        self._forgetting = [layer for layer in self.layers if isinstance(layer, MemoryLayer)]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; refuses to go on after a call that was interrupted between two layers."""
        if layer_idx == self._forgetting[0].index and len({layer.seen_with_padding for layer in self._forgetting}) > 1:
            raise RuntimeError(
                "an earlier call was interrupted and the layers of this cache have seen different tokens; reset() it"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def settle(self) -> None:
        """Decide now about the tokens since the last update, instead of when their block is full.

        Call it where a prompt, or the part of it that has to be remembered, ends: what is kept then is all the policy's
        choice, and a budget is met at any length. The next block begins here. Fewer tokens than the policy's
        ``smallest_block`` are left undecided; so is everything under a policy that never decides.
        """
        for layer in self._forgetting:
            layer.settle()

    def stats(self) -> CacheStats:
        """Tokens seen and kept, and bytes held, counted from the tensors."""
        return collect(self.layers)

    def positions(self) -> list[list[list[Tensor]]]:
        """Which tokens are held: ``[layer][batch row][head]``, each ``[tokens]`` int32, rising.

        The layers are those of `CacheStats.layers`.
        """
        return [
            [[row.store.head(h)["positions"].clone() for h in range(row.store.heads)] for row in layer.rows]
            for layer in self._forgetting
        ]

    def check(self) -> None:
        """Verify the cache's invariants; slow, for tests.

        Raises:
            AssertionError: naming the first one that does not hold.
        """
        for layer in self._forgetting:
            layer.check()
            assert [row.seen for row in layer.rows] == [row.seen for row in self._forgetting[0].rows], (
                f"layer {layer.index} has seen other tokens than layer {self._forgetting[0].index}"
            )

    def activate_past_recording(self) -> None:
        raise UnsupportedModelError(CANNOT_ROLL_BACK)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UnsupportedModelError(CANNOT_ROLL_BACK)


def layer_kinds(config: PretrainedConfig, name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The kind of each layer of the language model, and what transformers makes its cache with.

    Args:
        name: of the model, for the error.

    Raises:
        UnsupportedModelError: if none of them has full attention, the only kind that can forget.
    """
    types, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    if "full_attention" not in types:
        raise UnsupportedModelError(
            f"{name} has no full-attention layer to forget in (its layers: {sorted(set(types))})"
        )
    return types, arguments


def use_memory_attention(model: PreTrainedModel) -> None:
    """Set this library's attention on the language model, and leave vision towers and the like alone.

    Raises:
        UnsupportedModelError: if the model does not go through transformers' attention interface.
    """
    config = model.config
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; a MemoryCache serves decoder-only models")
    text = config.get_text_config(decoder=True)
    if text._attn_implementation == IMPLEMENTATION:
        return
    if text is config:
        model.set_attn_implementation(IMPLEMENTATION)
    else:
        part = next((key for key in config.sub_configs if getattr(config, key, None) is text), None)
        if part is None:
            raise UnsupportedModelError(
                f"{name} keeps its language model's configuration where this library does not find it"
            )
        model.set_attn_implementation({part: IMPLEMENTATION})
    if text._attn_implementation != IMPLEMENTATION:
        raise UnsupportedModelError(
            f"{name} does not go through transformers' attention interface, so a MemoryCache can't serve it"
        )
