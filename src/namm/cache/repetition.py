"""A cache in which a model repeats what another one holds, and which is thrown away."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from namm.cache.arithmetic import QUERY_TILE, AttentionForm, attend, groups
from namm.cache.engine import HeldRow
from namm.cache.handover import AskedLength, HandedTensor
from namm.cache.layer import MemoryLayer
from namm.cache.padding import Padding
from namm.policies.base import REHEARSED
from namm.support.tensors import round_up

if TYPE_CHECKING:
    from namm.cache.cache import MemoryCache

FIRST = 4  # tokens that attract attention whatever they say, and count in the softmax
LEAST = 2.0**-24  # what is noted at least, since 0 means not rehearsed: the smallest float16 above it


class Repetition(Cache):
    """Rows of a `MemoryCache` as they are, which one repetition attends to, and copies of its other layers.

    Args:
        rows: indices of the batch rows. fresh: how many of their newest tokens are repeated.
    """

    def __init__(self, cache: MemoryCache, rows: Sequence[int], fresh: int) -> None:
        visible, picked = cache.padding.visible, torch.tensor(rows)
        padding = Padding(None if visible is None else visible[picked.to(visible.device)])
        layers: list[Any] = []
        for layer in cache.layers:
            if isinstance(layer, MemoryLayer):
                layers.append(RepetitionLayer(layer, [layer.rows[row] for row in rows], fresh, padding))
            else:
                layers.append(copy.deepcopy(layer))
                layers[-1].reorder_cache(picked)
        super().__init__(layers=layers)
        self.cache = cache

    def __bool__(self) -> bool:
        return bool(self.cache)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.cache.refuse_switch(key_states.shape[2])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class RepetitionLayer(CacheLayerMixin):
    """Attends as a `MemoryLayer` does, stores nothing, and notes what the repeated tokens are paid."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, layer: MemoryLayer, rows: Sequence[HeldRow], fresh: int, padding: Padding) -> None:
        super().__init__()
        self.loan, self.rows, self.fresh, self.padding = layer.loan, rows, fresh, padding
        self.seen_with_padding = layer.seen_with_padding
        self.is_initialized = True
        self._handed: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.seen_with_padding

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        self.loan.borrow()
        return AskedLength.of(query_length, self), self.seen_with_padding

    def get_max_length(self) -> int:
        return -1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._handed = key_states, value_states
        self.loan.borrow()
        return HandedTensor.hand(key_states, self), HandedTensor.hand(value_states, self)

    @torch.no_grad()
    def attend(self, query: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
        """As `MemoryLayer.attend`; every token of a repetition is real."""
        assert self._handed is not None, "update comes first"
        (keys, values), self._handed = self._handed, None
        outputs = []
        for row, own_query, own_keys, own_values in zip(self.rows, query, keys, values, strict=True):
            found = []
            for h, own in enumerate(groups(own_query, row.store.heads)):
                held = row.store.head(h)
                whole = behind(held["keys"], own_keys[h]), behind(held["values"], own_values[h])
                tokens = held["keys"].shape[0]
                found.append(repeat(own_query[own], *whole, tokens, self.fresh, form.of_group(own)))
            outputs.append(torch.cat([output for output, _ in found]))
            row.note(REHEARSED, torch.stack([largest for _, largest in found]))
        return torch.stack(outputs).transpose(1, 2)


def behind(held: Tensor, new: Tensor) -> Tensor:
    """What is held and what is new ``[tokens, width]`` in one, with free slots behind it, see `round_up`."""
    tokens = len(held) + len(new)
    return torch.cat([held, new, new.new_zeros(round_up(tokens) - tokens, new.shape[1])])


def repeat(
    query: Tensor, keys: Tensor, values: Tensor, held: int, fresh: int, form: AttentionForm
) -> tuple[Tensor, Tensor]:
    """Attention of one KV head in a repetition, and the largest share that each repeated token is paid.

    The share is that of a softmax over the head's first `FIRST` tokens, the repeated tokens and the repetition.

    Args:
        query: ``[group, n, width]``, of the repetition.
        keys: ``[slots, width]`` of `held` tokens, the last `fresh` of which are repeated, and of the repetition.
        values: ``[slots, value width]``.

    Returns:
        ``[group, n, value width]``, and ``[fresh]`` float32, the largest over queries and group, at least `LEAST`.
    """
    group, new, older = query.shape[0], query.shape[1], held - fresh
    outputs, largest = [], torch.full((fresh,), LEAST, device=query.device)
    record = query.new_zeros(group, min(new, QUERY_TILE), keys.shape[0])
    for start in range(0, new, QUERY_TILE):
        stop = min(start + QUERY_TILE, new)
        paid = record[:, : stop - start]
        output = attend(query[:, start:stop], keys, values, held + stop, form, paid)
        assert output is not None
        outputs.append(output)
        counted = sum_of(paid[..., older : held + stop]) + sum_of(paid[..., : min(FIRST, older)])
        shares = paid[..., older:held] / counted.clamp_min(torch.finfo(counted.dtype).tiny)[..., None]
        largest = torch.maximum(largest, shares.amax((0, 1)))
    return torch.cat(outputs, dim=1), largest


def sum_of(parts: Tensor) -> Tensor:
    """Sum over the last dimension, in float32."""
    return parts.sum(-1, dtype=torch.float32)
