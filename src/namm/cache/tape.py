"""Gradients through a layer that forgets: exact, given what it decided.

A head attends in blocks to the tokens that it holds then. Which those are is written down, and the backward pass
attends to the same ones again: it needs nothing else but queries, keys and values. So does a layer that is computed
again in the backward pass (gradient checkpointing): it decides nothing, and leaves the cache as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from namm.cache.arithmetic import AttentionForm, attend, groups
from namm.cache.backward import attention_backward, wide
from namm.cache.engine import HeldRow
from namm.cache.lifetimes import Holding
from namm.cache.past import Past, places_in
from namm.cache.serves import UnsupportedModelError
from namm.support.tensors import round_up

NOT_RECORDED = (
    "a layer is computed again for its gradient, and the MemoryCache has not recorded its call: checkpoint layers with "
    "use_reentrant=False as transformers does, calls by namm.cache.checkpointed, and train() the cache before the first"
)


def recomputing() -> bool:
    """Whether this is a backward pass that computes a layer again."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1  # torch has no public name for it


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        form: how it attends, without sinks.
        offset: tokens that the layer had seen before it, padding included.
        newest: keys of the last token, ``[rows, KV heads, width]``, by which the call is known again.
        past: tokens of earlier calls.
        places: of each row and head where in these the tokens are that it held at first, ``[n]`` int64.
        holding: what was held, once it has attended.
    """

    form: AttentionForm
    offset: int
    newest: Tensor
    past: list[Past]
    places: list[list[Tensor]]
    holding: Holding = field(default_factory=Holding)

    def known(self, row: int, head: int, past: Tensor | None, new: Tensor) -> Tensor:
        """``[tokens, width]``: what a head held at first, then all new tokens, see `Lifetimes.held`."""
        own = new[head]
        return own if past is None else torch.cat([past.index_select(0, self.places[row][head]), own])


def _whole(parts: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(parts)) if parts else None


def _slots(tensor: Tensor, held: Tensor) -> Tensor:
    """The tokens ``[tokens, width]`` with free slots behind them, see `round_up`."""
    found = tensor.index_select(0, held)
    return F.pad(found, (0, 0, 0, round_up(len(held)) - len(held)))


@dataclass
class _Block:
    """A head's part in a block.

    Attributes:
        own: its query heads.
        span: of the new tokens.
        held: see `Lifetimes.held`.
        keys: of what is held, ``[slots, width]`` with free slots behind.
        values: likewise.
    """

    own: slice
    span: slice
    held: Tensor
    keys: Tensor
    values: Tensor


def _blocks(call: Call, row: int, head: int, own: slice, keys: Tensor, values: Tensor) -> Iterator[_Block]:
    lifetimes = call.holding.rows[row]
    for number, (start, stop) in enumerate(lifetimes.blocks()):
        held = lifetimes.held(head, number)
        yield _Block(own, slice(start, stop), held, _slots(keys, held), _slots(values, held))


def replayed(call: Call, query: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, *past: Tensor) -> Tensor:
    """What a call gave, computed again: ``[rows, tokens, query heads, value width]``."""
    form = AttentionForm(call.form.scaling, call.form.softcap, sinks)
    old_keys, old_values = _whole(past[::2]), _whole(past[1::2])
    outputs = []
    rows = zip(*(call.holding.real(tensor) for tensor in (query, keys, values)), strict=True)
    for b, (asked, new_keys, new_values) in enumerate(rows):
        output = asked.new_empty(*asked.shape[:2], new_values.shape[-1])
        for h, own in enumerate(groups(asked, len(new_keys))):
            known = call.known(b, h, old_keys, new_keys), call.known(b, h, old_values, new_values)
            for block in _blocks(call, b, h, own, *known):
                there = block.keys, block.values, len(block.held)
                found = attend(asked[own, block.span], *there, form.of_group(own))
                assert found is not None
                output[own, block.span] = found
        outputs.append(output)
    like = query.new_empty(*query.shape[:3], values.shape[-1])
    return call.holding.spread(outputs, like).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """A call with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[..., Tensor],
        call: Call,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None,
        *past: Tensor,
    ) -> Tensor:
        output = compute(query, keys, values)
        ctx.save_for_backward(query, keys, values, sinks, *past)
        ctx.call = call
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> Any:
        query, keys, values, sinks, *past = ctx.saved_tensors
        call: Call = ctx.call
        form = AttentionForm(call.form.scaling, call.form.softcap, sinks)
        exact = wide(keys.dtype)
        old = [_whole(past[::2]), _whole(past[1::2])]
        to_old = [None if tensor is None else torch.zeros_like(tensor, dtype=exact) for tensor in old]
        to_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=exact)
        found: list[list[Tensor]] = [[], [], []]
        rows = zip(*(call.holding.real(t) for t in (query, keys, values, incoming.transpose(1, 2))), strict=True)
        for b, (asked, *new, came) in enumerate(rows):
            to_query = torch.empty_like(asked)
            to_new = [torch.zeros_like(tensor, dtype=exact) for tensor in new]
            for h, own in enumerate(groups(asked, len(new[0]))):
                known = [call.known(b, h, *pair) for pair in zip(old, new, strict=True)]
                to_known = [torch.zeros_like(tensor, dtype=exact) for tensor in known]
                for block in _blocks(call, b, h, own, *known):
                    there = block.keys, block.values, len(block.held)
                    part = attention_backward(asked[own, block.span], *there, came[own, block.span], form.of_group(own))
                    to_query[own, block.span] = part.query
                    for whole, piece in zip(to_known, (part.keys, part.values), strict=True):
                        whole.index_add_(0, block.held, piece[: len(block.held)])
                    if to_sinks is not None and part.sinks is not None:
                        to_sinks[own] += part.sinks
                for whole, into, fresh in zip(to_known, to_old, to_new, strict=True):
                    before = len(whole) - fresh.shape[1]
                    fresh[h] = whole[before:]
                    if into is not None:
                        into.index_add_(0, call.places[b][h], whole[:before])
            for gradients, own_row in zip(found, (to_query, *to_new), strict=True):
                gradients.append(own_row)
        whole_rows = (call.holding.spread(own, like) for own, like in zip(found, (query, keys, values), strict=True))
        inputs = [own.to(like.dtype) for own, like in zip(whole_rows, (query, keys, values), strict=True)]
        sizes = [len(each) for each in past[::2]]
        parts = [() if whole is None else whole.to(keys.dtype).split(sizes) for whole in to_old]
        return None, None, *inputs, to_sinks, *(part for pair in zip(*parts, strict=True) for part in pair)


class Tape:
    """What the backward pass of one layer needs of the calls that it served.

    Attributes:
        keeps: every call is recorded, with what earlier ones left; else the first one only.
        calls: those recorded.
        missed: there was one that gradients may be wanted of and that is not recorded.
        replayed: number of the call that is computed again as a whole; None: none is, or a layer alone.
    """

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps
        self.calls: list[Call] = []
        self.missed = False
        self.replayed: int | None = None
        self._past: list[Past] = []
        self._newest: tuple[Tensor, Tensor, Call] | None = None

    def attend(
        self,
        compute: Callable[..., Tensor],
        rows: Sequence[HeldRow],
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        form: AttentionForm,
        offset: int,
    ) -> Tensor:
        """Serve a call and record it.

        Args:
            compute: of a `Holding` to be filled, query, keys and values the output.
            rows: as they are before it.
            offset: see `Call`.
        """
        self._catch_up(rows)
        places = [
            [places_in(self._past, b, h, row.store.head(h)["positions"]) for h in range(row.store.heads)]
            for b, row in enumerate(rows)
        ]
        bare = AttentionForm(form.scaling, form.softcap)
        call = Call(bare, offset, keys[:, :, -1].detach().clone(), list(self._past), places)
        output = self._apply(partial(compute, call.holding), call, query, keys, values, form.sinks)
        self.calls.append(call)
        self._newest = (keys, values, call) if self.keeps else None
        return output

    def again(self, query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
        """Of a call that is computed again.

        Raises:
            UnsupportedModelError: if it is not recorded.
        """
        call = self._known(keys) if self.replayed is None else self.calls[self.replayed]
        past = _flat(call.past)

        def compute(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return replayed(call, query, keys, values, form.sinks, *past)

        return self._apply(compute, call, query, keys, values, form.sinks)

    def offset_again(self) -> int:
        """Of the call that is computed again as a whole.

        Raises:
            UnsupportedModelError: if it is not known which that is.
        """
        if self.replayed is None:
            raise UnsupportedModelError(NOT_RECORDED)
        return self.calls[self.replayed].offset

    def _known(self, keys: Tensor) -> Call:
        """The call with these keys, or of those with as many heads that with the nearest ones."""
        newest = keys[:, :, -1].detach()
        alike = [call for call in self.calls if call.newest.shape == newest.shape]
        if not alike or self.missed:
            raise UnsupportedModelError(NOT_RECORDED)
        return min(reversed(alike), key=lambda each: float((each.newest - newest).abs().max()))

    def _apply(self, compute: Callable[..., Tensor], call: Call, *inputs: Tensor | None) -> Tensor:
        output: Tensor = _Attention.apply(compute, call, *inputs, *_flat(call.past))
        return output

    def _catch_up(self, rows: Sequence[HeldRow]) -> None:
        """Take what the rows still hold of the tokens that came since the last recorded call began."""
        if not rows:
            return
        # not the business of whoever checkpoints the layer, which does this once
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            if self._newest is not None:
                keys, values, call = self._newest
                self._past.append(Past.of_call(keys, values, call.holding, rows))
                self._newest = None
            since = self._past[-1].ends if self._past else [0] * len(rows)
            if since != [row.seen for row in rows]:  # read without a gradient
                self._past.append(Past.constant(rows, since))


def _flat(past: Sequence[Past]) -> list[Tensor]:
    return [tensor for each in past for tensor in (each.keys, each.values)]
