"""A transformers cache whose full-attention layers forget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache

from namm.cache.branch import branch
from namm.cache.calls import check_call, check_layers
from namm.cache.engines import engine_of
from namm.cache.layer import MemoryLayer
from namm.cache.loan import loan_of
from namm.cache.padding import Padding
from namm.cache.rehearsal import Rehearsal
from namm.cache.saved import Saved, save
from namm.cache.serves import (
    CANNOT_ROLL_BACK,
    NEEDS_USE_CACHE,
    UnsupportedModelError,
    layer_kinds,
    longrope_switch,
    refuse_switch,
    served_model,
)
from namm.cache.stats import CacheStats, collect
from namm.cache.tape import recomputing
from namm.memory import NAMM
from namm.models.rope import rotary_of
from namm.policies import NAMMPolicy
from namm.policies.base import Policy


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
            and batch rows of a layer at once, padded to the longest head; "ragged" does so with Triton kernels, for
            GPUs. All keep the same tokens. A policy that decides head by head gets "loops", and what there is no kernel
            for "padded", with a warning.
        bits: of keys and values that are decided on, 4 or 8, see `namm.cache.codes`; None: as the model has them.

    Raises:
        UnsupportedModelError: if the model can't be served.
        ValueError: if there is no such engine, or no packing to so many bits; if the policy sees queries, and how the
            model turns them by positions is not known, see `rotary_of`.
        TypeError: if `model` is no model, or `policy` neither a policy nor a memory.

    Example:
        >>> cache = MemoryCache(model, memory)                                   # doctest: +SKIP
        >>> out = model.generate(**inputs, past_key_values=cache)                # doctest: +SKIP
        >>> print(cache.stats())                                                 # doctest: +SKIP
    """

    def __init__(
        self, model: PreTrainedModel, policy: Policy | NAMM, engine: str = "loops", bits: int | None = None
    ) -> None:
        if isinstance(policy, NAMM):
            policy = NAMMPolicy(policy)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a namm.policies.Policy or a namm.NAMM, got {type(policy).__name__}")
        if policy.update_interval is not None and policy.update_interval < max(1, policy.carry):
            raise ValueError(
                f"policy {policy.name!r} has the update interval {policy.update_interval}; it must be at least 1 "
                f"and not below its carry ({policy.carry})"
            )
        self.policy, self.bits = policy, bits
        model = served_model(model)
        self.engine, made = engine_of(engine, policy, model, bits)
        self.padding = Padding()
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
        self._forgetting[-1].before = self._forgetting[:-1]
        text: Any = model.config.get_text_config(decoder=True)
        self._thrown_away = getattr(text, "original_max_position_embeddings", None) is not None
        self._switches_at = longrope_switch(text)

    def __bool__(self) -> bool:
        """True, but for models that throw a true cache away where their rotary positions change (Phi-3 and its kin)."""
        return not self._thrown_away

    def attach(self, model: PreTrainedModel) -> None:
        """Use a cache that was loaded from a file with its model, which a file can't hold.

        Raises:
            UnsupportedModelError: if the model has other layers than the one the cache was made for.
        """
        model = served_model(model)
        check_layers(model, len(self.layers), [layer.index for layer in self._forgetting])
        self.loan = loan_of(model)
        for layer in self._forgetting:
            layer.loan = self.loan

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; refuses to go on after a call that was interrupted between two layers."""
        if layer_idx >= len(self.layers):
            raise UnsupportedModelError(
                f"this cache has {len(self.layers)} layers, the model a layer {layer_idx}: it was made for another one"
            )
        if layer_idx == self._forgetting[0].index and not recomputing():  # once a forward pass
            check_call(self.loan.model, self._forgetting)
            self.refuse_switch(key_states.shape[2])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def train(self, keeps: bool = True) -> None:
        """Have gradients pass through all calls from here on, each to what it still holds of the ones before.

        Without it they pass through the first call only, and a backward pass through another one is refused. They are
        exact, given what was decided; the memory itself gets none. What calls leave behind is held with its graph until
        `reset`. Only the engine "loops" without bits gives gradients.

        Raises:
            RuntimeError: if it has read something that gradients pass through.
        """
        for layer in self._forgetting:
            layer.train(keeps)

    def refuse_switch(self, new: int) -> None:
        """Keys cached under short rotary frequencies mean nothing under long ones.

        Raises:
            UnsupportedModelError: if so many new tokens go past the change.
        """
        refuse_switch(max((row.seen for row in self._forgetting[0].rows), default=0), new, self._switches_at)

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

    def save(
        self,
        folder: str | Path,
        tokenizer: Any = None,
        ids: Tensor | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what the cache holds to a folder, for `load` in another process; call `settle` before.

        Args:
            tokenizer: its fingerprint is kept, for `load` to compare.
            ids: ``[rows, tokens]`` token ids that were read, to be kept as well; see `namm.cache.saved.Saved`.
            notes: of your own, JSON values.

        Raises:
            ValueError: if nothing was read, a call was interrupted, or a layer has a state as linear attention has.
        """
        save(self, folder, tokenizer, ids, notes or {})

    @classmethod
    def load(
        cls,
        model: PreTrainedModel,
        folder: str | Path,
        tokenizer: Any = None,
        policy: Policy | None = None,
        engine: str | None = None,
    ) -> MemoryCache:
        """A cache that goes on where one was saved, with the same model in any of its dtypes, on any device.

        Args:
            policy: to go on under; None: the one that it was read under. engine: likewise.

        Raises:
            MemoryFileError: if the file is missing or damaged.
            ValueError: if it was read by another model or tokenizer, or under a policy of your own and none is given.
        """
        saved = Saved.read(folder)
        saved.check(model := served_model(model), tokenizer)
        made = cls(model, policy or saved.policy(), engine or saved.header["engine"], saved.header["bits"])
        return saved.fill(made, model)

    def fork(self) -> MemoryCache:
        """A cache that goes on by itself from what this one holds, which both share until they decide on it.

        One text can so be asked many questions: a fork costs the memory of what it reads and says itself, up to the
        policy's next decision, which makes a copy. With "padded" and "ragged" it is a copy but for what `bits` pack.
        """
        return branch(self.model, self, self.policy)

    @property
    def model(self) -> PreTrainedModel:
        """The model that it was made for or attached to; UnsupportedModelError where there is none."""
        if (model := self.loan.model) is None:
            raise UnsupportedModelError("this cache knows no model: attach(model) it first")
        return model

    def stats(self) -> CacheStats:
        """Tokens seen and kept, and bytes held, counted from the tensors."""
        return collect(self.layers)

    def positions(self) -> list[list[list[Tensor]]]:
        """Which tokens are held: ``[layer][row][head]``, each ``[tokens]`` int32, rising, as in `CacheStats.layers`."""
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
