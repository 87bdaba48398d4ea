"""One full-attention layer that forgets, as transformers sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from namm.cache.arithmetic import AttentionForm
from namm.cache.engine import Engine, HeldRow
from namm.cache.handover import AskedLength, HandedTensor
from namm.cache.lifetimes import Holding
from namm.cache.loan import IMPLEMENTATION, Loan
from namm.cache.loops import Loops
from namm.cache.padding import Padding
from namm.cache.serves import UnsupportedModelError
from namm.cache.tape import Tape, recomputing
from namm.models.rope import Rotary
from namm.policies.base import Policy


class MemoryLayer(CacheLayerMixin):
    """`update` only hands the new tokens on; the work is done in `attend`, where the queries are known.

    A prompt is taken in blocks of the policy's update interval, counted for every row from its last update. Between
    blocks that a prompt fills at once nothing but the kept tokens is held; queries of an unfinished block (the end of a
    prompt, or decoding) are held until it is full or `settle` ends it, and replayed then.

    Attributes:
        engine: what stores, attends and forgets.
        tape: what gradients need.
        seen_with_padding: tokens so far as transformers counts them.
        padding, loan: shared by all layers of a cache.
        rotary: how the model turns queries, for a policy that sees them.
        before: of the last layer of the cache that forgets, the others; None: it is not the last. All are compared once
            the last has attended. It is not among them, as what holds itself is not freed when the cache goes.
        waits: blocks end by `settle` only, and nothing is decided before.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(
        self,
        index: int,
        policy: Policy,
        padding: Padding,
        loan: Loan,
        rotary: Rotary | None = None,
        engine: Callable[[Policy, int, Rotary | None], Engine] = Loops,
    ) -> None:
        super().__init__()
        self.index, self.policy, self.padding, self.loan, self.rotary = index, policy, padding, loan, rotary
        self.before: Sequence[MemoryLayer] | None = None
        self._make = engine
        self.tape = Tape()
        self.reset()

    def reset(self) -> None:
        self.engine = self._make(self.policy, self.index, self.rotary)
        self.tape = Tape(self.tape.keeps)
        self.seen_with_padding = 0
        self.waits = self.is_initialized = False
        self._handed: tuple[Tensor, Tensor] | None = None
        self._form: AttentionForm | None = None
        self.padding.reset()
        self.loan.give_back()
        self.loan.drop_cache()

    @property
    def rows(self) -> Sequence[HeldRow]:
        """One for each batch row, none before the first tokens."""
        return self.engine.rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen, padding included, never tokens kept: positions and generate's slicing follow from it."""
        return self.tape.offset_again() if recomputing() else self.seen_with_padding

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask covers the new tokens only: all that is kept is visible, and padding is never stored."""
        offset = self.get_seq_length()
        self.loan.keep_cache()
        self.loan.borrow()  # transformers looks the mask function up next
        return AskedLength.of(query_length, self), offset

    def get_max_length(self) -> int:
        return -1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands on the new tokens ``[batch, KV heads, tokens, width]``; nothing is stored before `attend`."""
        if self._handed is not None and not recomputing():
            raise UnsupportedModelError(
                f"layer {self.index} updated its cache twice without attending through {IMPLEMENTATION!r}: the model's "
                "attention can't be served, or an earlier call was interrupted; reset() the cache to use it again"
            )
        if self.rows and len(self.rows) != key_states.shape[0]:
            raise ValueError(
                f"this cache holds {len(self.rows)} batch rows and was given {key_states.shape[0]}; make a new "
                "MemoryCache, or call its batch_repeat_interleave first"
            )
        self.is_initialized = True
        self._handed = key_states, value_states
        self.loan.borrow()  # transformers looks the attention function up next
        return HandedTensor.hand(key_states, self), HandedTensor.hand(value_states, self)

    def attend(self, query: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
        """Attention of the new tokens, which are stored on the way.

        Args:
            query: ``[batch, query heads, tokens, width]``. mask: see `namm.cache.padding.real_tokens`.
            form: how this model attends, its sinks ``[query heads]``.

        Returns:
            ``[batch, tokens, query heads, value width]``; zeros for padding. Where no gradient can be given, a backward
            pass through it raises UnsupportedModelError.
        """
        if self._handed is None:
            raise UnsupportedModelError(f"layer {self.index} attends without having updated its cache")
        keys, values = self._handed
        tokens = query.shape[2]
        if tokens != keys.shape[2]:
            raise UnsupportedModelError(
                f"layer {self.index} attends with {tokens} queries for {keys.shape[2]} new tokens"
            )
        if recomputing():
            self._handed = None
            self._last_attended()
            return self.tape.again(query, keys, values, form)
        if torch.is_grad_enabled() and not self._no_gradient():

            def compute(holding: Holding, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
                return self._attend(query, keys, values, mask, form, holding)

            output = self.tape.attend(compute, self.rows, query, keys, values, form, self.seen_with_padding)
            self.seen_with_padding += tokens
        else:
            self.tape.missed |= torch.is_grad_enabled()
            output = self.take(query, keys, values, mask, form)
        self._handed = None
        self._last_attended()
        return output

    def take(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
        """`attend`, without gradients, of new tokens that come with it, and not by `update`."""
        output: Tensor = _WithoutGradient.apply(self._attend, self._no_gradient(), query, keys, values, mask, form)
        self.seen_with_padding += query.shape[2]
        self.is_initialized = True
        return output

    def _last_attended(self) -> None:
        if self.before is not None:
            self.loan.drop_cache()

    def train(self, keeps: bool) -> None:
        """See `MemoryCache.train`."""
        if self.tape.calls:
            raise RuntimeError("gradients pass through what this cache has read: reset() it before train()")
        self.tape.keeps = keeps

    def _no_gradient(self) -> str:
        """Why no gradient passes through the next call; nothing where it does."""
        if not isinstance(self.engine, Loops) or self.engine.bits is not None:
            return "use the engine 'loops' without bits, as in MemoryCache(model, policy)"
        if self.waits:
            return "train without a rehearsal"
        if self.rows and not self.tape.keeps:
            return "give all tokens in one call, or call train() of the cache before the first one"
        return ""

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        form: AttentionForm,
        holding: Holding | None = None,
    ) -> Tensor:
        batch, tokens = query.shape[0], query.shape[2]
        self._form = form
        told = self.padding.at(self.seen_with_padding, tokens)
        if told is not None and told.hidden is not None:
            self._refuse_in_training("a mask must not hide tokens")
            self.engine.hide([hidden.to(query.device) for hidden in told.hidden])
        real = self.padding.real(mask, told, batch, tokens)
        if holding is None:
            output = self.engine.serve(query, keys, values, real, form, self.waits)
        else:
            assert isinstance(self.engine, Loops), "see _no_gradient"
            output = self.engine.recorded(query, keys, values, real, form, holding)
        self.compare()
        return output

    def forget_handed(self) -> None:
        """Give up what a call that failed has handed to the model."""
        self._handed = None
        self.loan.give_back()

    def _refuse_in_training(self, what: str) -> None:
        if self.tape.keeps and self.tape.calls:
            raise UnsupportedModelError(
                f"{what} of earlier calls while a MemoryCache is in training: reset() it before"
            )

    def compare(self) -> None:
        """Have the heads of all layers decided on together, where this is the last one and blocks ended since then."""
        if self.before is None or not (self.policy.trims and self.engine.decided):
            return
        self.engine.decided = False
        engines = [layer.engine for layer in (*self.before, self)]
        for engine in engines:
            engine.trim()
        engines[0].decide(engines)

    @torch.no_grad()
    def settle(self, rows: Sequence[int] | None = None) -> None:
        """End the block here, so that its heads are due; see `MemoryCache.settle`, which then decides."""
        if self._form is not None:
            self.engine.settle(self._form, rows)

    def continue_from(self, other: MemoryLayer) -> None:
        """Hold under this layer's policy what another layer holds, which goes on by itself."""
        other._refuse_in_training("a branch can't be made from what it holds")
        self.engine = other.engine.under(self.policy)
        self.seen_with_padding, self.is_initialized = other.seen_with_padding, other.is_initialized
        self._form = other._form

    # what moves batch rows moves everything a row holds; `MemoryCache` moves what its layers share

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.rows:
            return
        self._refuse_in_training("batch rows can't be moved that hold tokens")
        order = [int(i) for i in (indices.nonzero().squeeze(-1) if indices.dtype == torch.bool else indices)]
        self.engine.select(order)

    def offload(self) -> None:
        raise UnsupportedModelError("a MemoryCache can't be offloaded; it is small because it forgets")

    def prefetch(self) -> None:
        raise UnsupportedModelError("a MemoryCache can't be offloaded; it is small because it forgets")

    def check(self) -> None:
        """Raises AssertionError where an invariant of the layer does not hold."""
        for index, row in enumerate(self.rows):
            assert row.index == index, f"row {index} takes itself for row {row.index}"
            row.check()


class _WithoutGradient(torch.autograd.Function):
    """A call that no gradient passes: where one is wanted, the backward pass says why."""

    @staticmethod
    def forward(ctx: Any, call: Any, reason: str, query: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
        output: Tensor = call(query, keys, values, *rest)
        ctx.reason = reason
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedModelError(f"no gradient passes through this call of a MemoryCache: {ctx.reason}")
