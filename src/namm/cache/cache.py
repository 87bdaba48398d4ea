"""A transformers cache whose full-attention layers forget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache

from namm.cache.engine import Engine
from namm.cache.layer import MemoryLayer
from namm.cache.loan import loan_of
from namm.cache.loops import Loops
from namm.cache.padded import Padded
from namm.cache.padding import Padding
from namm.cache.rehearsal import Rehearsal
from namm.cache.serves import NEEDS_USE_CACHE, UnsupportedModelError, layer_kinds
from namm.cache.stats import CacheStats, collect
from namm.memory import NAMM
from namm.models.rope import Rotary, rotary_of
from namm.policies import NAMMPolicy
from namm.policies.base import Policy

ENGINES: dict[str, Callable[[Policy, int, Rotary | None], Engine]] = {"loops": Loops, "padded": Padded}
CANNOT_ROLL_BACK = (
    "a cache that forgets can't be rolled back, so assisted decoding and prompt lookup can't use it; call generate "
    "without assistant_model and prompt_lookup_num_tokens"
)


class MemoryCache(Cache):
    """A cache for ``model(...)`` and ``model.generate(..., past_key_values=cache)`` that keeps what its policy wants.

    Every KV head of every full-attention layer and batch row keeps tokens of its own, and the memory of the others is
    freed. Positions stay true. Layers of other kinds (sliding windows, linear attention) get transformers' own cache.
    Tokens that a later attention mask hides are forgotten.

    Args:
        model: any transformers decoder that goes through the attention interface. It is left as it is: the cache
            borrows its attention for the moments in which it attends (see `namm.cache.loan`).
        policy: a `Policy`, or a `NAMM` to be used as it is.
        engine: "loops" goes head by head, and holds and computes nothing that is not there; "padded" takes all heads
            and batch rows of a layer at once, padded to the longest head, so that a step is a few operations at any
            number of them. Both keep the same tokens. A policy that decides head by head gets "loops", with a warning.

    Raises:
        UnsupportedModelError: if the model can't be served.
        ValueError: if there is no such engine; if the policy sees queries, and how the model turns them by positions is
            not known, see `rotary_of`.
        TypeError: if `model` is no model, or `policy` neither a policy nor a memory.

    Example:
        >>> cache = MemoryCache(model, memory)                                   # doctest: +SKIP
        >>> out = model.generate(**inputs, past_key_values=cache)                # doctest: +SKIP
        >>> print(cache.stats())                                                 # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, policy: Policy | NAMM, engine: str = "loops") -> None:
        if isinstance(policy, NAMM):
            policy = NAMMPolicy(policy)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a namm.policies.Policy or a namm.NAMM, got {type(policy).__name__}")
        if policy.update_interval is not None and policy.update_interval < max(1, policy.carry):
            raise ValueError(
                f"policy {policy.name!r} has the update interval {policy.update_interval}; it must be at least 1 "
                f"and not below its carry ({policy.carry})"
            )
        self.policy = policy
        made = engine_of(engine, policy)
        self.padding = Padding()
        model = served_model(model)
        types, arguments = layer_kinds(model.config, type(model).__name__)
        self.loan = loan_of(model)
        if getattr(getattr(model, "generation_config", None), "use_cache", None) is False:
            raise UnsupportedModelError(NEEDS_USE_CACHE)
        rotary = rotary_of(model) if policy.sees_queries else None
        super().__init__(
            layers=[
                MemoryLayer(index, policy, self.padding, self.loan, rotary, made)
                if kind == "full_attention"
                else DYNAMIC_LAYER_TYPE_MAPPING[kind](**options)
                for index, (kind, options) in enumerate(zip(types, arguments, strict=True))
            ]
        )
        self._forgetting = [layer for layer in self.layers if isinstance(layer, MemoryLayer)]
        self._forgetting[-1].every = self._forgetting
        text: Any = model.config.get_text_config(decoder=True)
        self._thrown_away = getattr(text, "original_max_position_embeddings", None) is not None
        self._switches_at = _longrope_switch(text)

    def __bool__(self) -> bool:
        """True, but for models that throw a true cache away where their rotary positions change (Phi-3 and its kin)."""
        return not self._thrown_away

    def attach(self, model: PreTrainedModel) -> None:
        """Use a cache that was loaded from a file with its model, which a file can't hold.

        Raises:
            UnsupportedModelError: if the model has other layers than the one the cache was made for.
        """
        model = served_model(model)
        types, _ = layer_kinds(model.config, type(model).__name__)
        forgetting = [layer.index for layer in self._forgetting]
        if len(types) != len(self.layers) or forgetting != [i for i, t in enumerate(types) if t == "full_attention"]:
            raise UnsupportedModelError(
                f"{type(model).__name__} has other layers than the model that this cache was made for"
            )
        self.loan = loan_of(model)
        for layer in self._forgetting:
            layer.loan = self.loan

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; refuses to go on after a call that was interrupted between two layers."""
        if layer_idx >= len(self.layers):
            raise UnsupportedModelError(
                f"this cache has {len(self.layers)} layers, the model a layer {layer_idx}: it was made for another one"
            )
        if layer_idx == self._forgetting[0].index:  # once a forward pass
            if is_compiled(self.loan.model):
                raise UnsupportedModelError(COMPILED)
            if len({layer.seen_with_padding for layer in self._forgetting}) > 1:
                raise RuntimeError(
                    "an earlier call was interrupted and the layers of this cache saw different tokens; reset() it"
                )
            if not all(row.room(1) for row in self._forgetting[0].rows):
                raise RuntimeError(
                    "a rehearsal was interrupted, and what was read is not decided on; settle() the cache"
                )
            self.refuse_switch(key_states.shape[2])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def refuse_switch(self, new: int) -> None:
        """Keys cached under short rotary frequencies mean nothing under long ones.

        Raises:
            UnsupportedModelError: if so many new tokens go past the change.
        """
        seen = max((row.seen for row in self._forgetting[0].rows), default=0)
        if self._switches_at is not None and 0 < seen <= self._switches_at < seen + new:
            raise UnsupportedModelError(
                f"this model changes its rotary positions past {self._switches_at} tokens, and {seen} are cached with "
                f"the old ones: give a text that will get longer in one call of more than {self._switches_at} tokens, "
                "or stop before"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.padding.select(beam_idx)
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # any integers will do

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = len(self._forgetting[0].rows)
        self.padding.select(torch.arange(rows).repeat_interleave(repeats))
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.padding.select(indices)
        super().batch_select_indices(indices)

    @torch.no_grad()
    def rehearse(
        self,
        ids: Tensor,
        instruction: Tensor,
        attention_mask: Tensor | None = None,
        progress: Callable[[int], object] = lambda tokens: None,
    ) -> Tensor:
        """Let the model read a text and repeat every block of it before that is decided on; all is decided on then.

        For a text that is read once and asked often: every token goes through the model twice, and a block and
        its repetition are held meanwhile. Afterwards the cache is as if there had been no repetition, but for what the
        policy made of it; see `namm.cache.rehearsal`.

        Args:
            ids: ``[rows, tokens]``.
            instruction: token ids, ``[tokens]``, which come before a repetition, see `namm.tasks.encode.to_repeat`.
            attention_mask: ``[rows, tokens]``, 0 for padding, which is on the left.
            progress: called with the number of tokens read.

        Returns:
            Logits of the token that comes next, ``[rows, vocabulary]``.

        Raises:
            ValueError: if the policy does not look at a rehearsal.
        """
        if not self.policy.rehearses:
            raise ValueError(f"policy {self.policy.name!r} does not look at a rehearsal: read without one")
        return Rehearsal.of(self, ids, instruction, attention_mask, progress).read()

    @torch.no_grad()
    def settle(self, rows: Sequence[int] | None = None) -> None:
        """Decide now about the tokens since the last update, instead of when their block is full.

        Call it where a prompt, or the part of it that has to be remembered, ends: what is kept then is all the policy's
        choice, and a budget is met at any length. The policy is asked once about the heads of all layers, which may so
        share one budget. The next block begins here. Fewer tokens than the policy's ``smallest_block`` are left
        undecided; so is everything under a policy that never decides.

        Args:
            rows: indices of the batch rows to decide on; None: all.
        """
        self._forgetting[-1].compare()  # put off in a branch only
        for layer in self._forgetting:
            layer.settle(rows)
        engines = [layer.engine for layer in self._forgetting]
        engines[0].decide(engines)

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


def engine_of(name: str, policy: Policy) -> Callable[[Policy, int, Rotary | None], Engine]:
    """The engine of that name, or "loops" where the policy takes no other."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name != "loops" and not policy.takes_grids:
        warnings.warn(
            f"{type(policy).__name__} decides head by head, so the engine is 'loops' and not {name!r}", stacklevel=3
        )
        return Loops
    return ENGINES[name]


COMPILED = (
    "a compiled model can't be served: what a cache keeps changes its shapes from step to step; use the model that "
    "was compiled"
)


def served_model(model: Any) -> PreTrainedModel:
    """The model, out of the wrapper that peft puts around it.

    Raises:
        TypeError, UnsupportedModelError: where its class tells that it can't be served.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if isinstance(model, tuple):
        raise TypeError("MemoryCache takes a model and got a tuple: load_model returns (model, tokenizer)")
    if is_compiled(model):
        raise UnsupportedModelError(COMPILED)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"MemoryCache takes a model of transformers and got {type(model).__name__}")
    return model


def is_compiled(model: Any) -> bool:
    """By ``torch.compile(model)`` or ``model.compile()``."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def _longrope_switch(config: Any) -> int | None:
    """The number of tokens beyond which rotary frequencies change, for models whose they do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    limit = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return None if limit is None else int(limit)
