"""Several caches of one row each, as one batch of one step: what continuous batching needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from namm.cache.arithmetic import AttentionForm
from namm.cache.handover import AskedLength, HandedTensor
from namm.cache.layer import MemoryLayer
from namm.cache.packed import Packed
from namm.cache.padding import Padding
from namm.cache.split import SplitStore

if TYPE_CHECKING:
    from namm.cache.cache import MemoryCache

TRIED = 3, 40  # tokens
ROUNDING = 0.02  # of the logits' norm; positions that are wrong change them by far more


class Together(Cache):
    """A forward pass in which every batch row has the same number of new tokens and a cache of its own.

    Each cache takes its tokens and decides as in a pass by itself; nothing is copied or padded. Rows may have seen
    different numbers of tokens, so give the model their ``position_ids``; see `step`. A row whose cache raises has no
    further part in the pass, and the others go on.

    Args:
        caches: of one row each, all of whose layers forget, of a model that `can_join`.

    Attributes:
        failed: by row, what its cache raised. The cache is of no use any more.

    Example:
        >>> together = Together([first, second])                                  # doctest: +SKIP
        >>> logits = step(model, together, torch.tensor([[17], [4]]))             # doctest: +SKIP
    """

    def __init__(self, caches: Sequence[MemoryCache]) -> None:
        self.caches, self.failed = list(caches), dict[int, Exception]()
        layers: Any = zip(*(cache.layers for cache in caches), strict=True)
        super().__init__(layers=[_TogetherLayer(list(own), self.failed) for own in layers])

    def __bool__(self) -> bool:
        return all(map(bool, self.caches))


@torch.inference_mode()
def can_join(model: Any, make: Callable[[], MemoryCache]) -> bool:
    """Whether a model's caches can take steps together.

    Those with sliding windows or linear attention can't. Whether the model takes every row's position as it is given is
    tried, on a short text and a longer one.

    Args:
        make: an empty cache.
    """
    pairs = []
    for length in TRIED:
        cache = make()
        if not all(isinstance(layer, MemoryLayer) for layer in cache.layers):
            return False
        ids = torch.arange(1, length + 1, device=model.device)[None]  # equal ones would not tell positions apart
        model(ids, past_key_values=cache, logits_to_keep=1)
        pairs.append((cache, cache.fork()))
    ids = torch.ones(len(pairs), 1, dtype=torch.long, device=model.device)
    alone = [model(ids[:1], past_key_values=cache, logits_to_keep=1).logits[0, -1].float() for cache, _ in pairs]
    try:
        found = step(model, Together([cache for _, cache in pairs]), ids).float()
    except TypeError:  # it takes no positions
        return False
    return all(
        float((own - wanted).norm()) <= ROUNDING * float(wanted.norm())
        for own, wanted in zip(found, alone, strict=True)
    )


def step(model: Any, together: Together, ids: Tensor) -> Tensor:
    """The logits that follow on the next token of every row.

    Args:
        ids: ``[rows, 1]`` int64.

    Returns:
        ``[rows, vocabulary]``; of a row that failed they mean nothing.
    """
    for row, cache in enumerate(together.caches):
        try:
            cache.refuse_switch(1)
        except ValueError as error:
            together.failed[row] = error
    seen = torch.tensor([[cache.get_seq_length()] for cache in together.caches], device=ids.device)
    logits: Tensor = model(ids, past_key_values=together, position_ids=seen, logits_to_keep=1).logits
    return logits[:, -1]


class _TogetherLayer(CacheLayerMixin):
    """One layer of several caches."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, layers: Sequence[MemoryLayer], failed: dict[int, Exception]) -> None:
        super().__init__()
        self.own, self.failed = layers, failed
        self.loan, self.padding, self.is_initialized = layers[0].loan, Padding(), True
        self._handed: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return max(layer.seen_with_padding for layer in self.own)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        self.loan.borrow()
        return AskedLength.of(query_length, self), self.get_seq_length()

    def get_max_length(self) -> int:
        return -1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._handed = key_states, value_states
        self.loan.borrow()
        return HandedTensor.hand(key_states, self), HandedTensor.hand(value_states, self)

    def attend(self, query: Tensor, mask: Tensor | None, form: AttentionForm) -> Tensor:
        """As `MemoryLayer.attend`, row by row; zeros for a row that failed."""
        assert self._handed is not None, "update comes first"
        (keys, values), self._handed = self._handed, None
        rows, heads, tokens, _ = query.shape
        output = query.new_zeros(rows, tokens, heads, values.shape[-1])
        with _unpacked_once(layer for row, layer in enumerate(self.own) if row not in self.failed):
            for row, layer in enumerate(self.own):
                if row in self.failed:
                    continue
                own = slice(row, row + 1)
                try:
                    output[own] = layer.take(query[own], keys[own], values[own], None, form)
                except Exception as error:  # of whatever kind: the other rows are not to suffer
                    self.failed[row] = error
        return output


@contextmanager
def _unpacked_once(layers: Iterable[MemoryLayer]) -> Iterator[None]:
    """While it lasts, what several of these layers' rows hold together in few bits is unpacked once for all."""
    stores = [row.store for layer in layers for row in layer.rows]
    packed = [store.held for store in stores if isinstance(store, SplitStore) and isinstance(store.held, Packed)]
    found = {id(held): held for held in packed}
    several = Counter(id(held) for held in packed)
    with ExitStack() as stack:
        for key, held in found.items():
            if several[key] > 1:
                stack.enter_context(held.unpacked_once())
        yield
