"""A model's attention, lent to a cache for the moment in which transformers looks it up.

transformers reads the name of the attention implementation from the configuration: for the mask right after it has
asked the cache for its sizes, and for the attention right after it has updated the cache. So the cache borrows in those
two methods, and the functions that are then found (`namm.cache.handover`) give back at once: a model is as it was found
whenever anything else looks at it. Several threads may borrow from one model; while one of them does, calls that have
nothing to do with a `MemoryCache` are passed on to the model's own function.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from namm.cache.keeping import Keeping
from namm.cache.serves import UnsupportedModelError, layer_kinds

IMPLEMENTATION = "namm_memory"
"""Name of the attention implementation (without "sdpa" or "flash", which would trigger transformers' own checks)."""

INTERNAL = "_attn_implementation_internal"  # of a configuration; set without transformers' checks, which take longer

CHECKPOINTED = (
    "gradient checkpointing needs a MemoryCache for all layers, and some of this model's have a sliding window or a "
    "state: do without, by model.gradient_checkpointing_disable()"
)

_lock = threading.Lock()
_lent: dict[
    int, tuple[PretrainedConfig, str | None, int]
] = {}  # by id: configuration, its own implementation, borrowers
_abandoned: deque[list[PretrainedConfig]] = deque()  # borrowed by caches that are gone


class Loan:
    """What one cache borrows from its model, and whether it has it at the moment.

    Attributes:
        configs: of the language model's layers.
        model: it, or None where it is gone or unknown.
        alone: all its layers forget.
    """

    def __init__(self, configs: Sequence[PretrainedConfig], model: PreTrainedModel | None, alone: bool = True) -> None:
        self.configs = list(configs)
        self._model = None if model is None else weakref.ref(model)
        self.alone = alone
        self._holding = False
        self._keeping = Keeping()

    @property
    def model(self) -> PreTrainedModel | None:
        return None if self._model is None else self._model()

    def borrow(self) -> None:
        """Idempotent, as is `give_back`."""
        if not self._holding:
            with _lock:
                for config in self.configs:
                    _, own, borrowers = _lent.get(id(config), (config, vars(config)[INTERNAL], 0))
                    _lent[id(config)] = config, own, borrowers + 1
                    vars(config)[INTERNAL] = IMPLEMENTATION
            self._holding = True
            _collect()

    def give_back(self) -> None:
        if self._holding:
            self._holding = False
            with _lock:
                _restore(self.configs)
            _collect()

    def keep_cache(self) -> None:
        """From here to `drop_cache` layers that are checkpointed are given the cache; see `Keeping`.

        Raises:
            UnsupportedModelError: if there are such, and some of the model's layers do not forget.
        """
        if (model := self.model) is not None and model.training:
            self._keeping.begin(model)
        if self.keeps_cache and not self.alone:
            self.drop_cache()
            raise UnsupportedModelError(CHECKPOINTED)

    def drop_cache(self) -> None:
        self._keeping.end()

    @property
    def keeps_cache(self) -> bool:
        return bool(self._keeping.layers)

    def __del__(self) -> None:  # of a cache that was given up in the middle of a call
        if self._holding and _collect is not None:  # the interpreter may be ending
            _abandoned.append(self.configs)
            _collect()

    def __deepcopy__(self, memo: dict[int, Any]) -> Loan:
        return Loan(self.configs, self.model, self.alone)  # a copied cache belongs to the same model

    def __reduce__(self) -> Any:
        return Loan, ((), None)  # a saved one to none


def _collect() -> None:
    """Restore what was abandoned. Never waits: a finaliser may run anywhere, also where the lock is held."""
    while _abandoned and _lock.acquire(blocking=False):
        try:
            if _abandoned:
                _restore(_abandoned.popleft())
        finally:
            _lock.release()


def _restore(configs: Sequence[PretrainedConfig]) -> None:
    for config in configs:
        _, own, borrowers = _lent.pop(id(config))
        if borrowers > 1:
            _lent[id(config)] = config, own, borrowers - 1
        else:
            vars(config)[INTERNAL] = own


def own_implementation(config: PretrainedConfig) -> str | None:
    """The model's own attention implementation, whether it is lent or not."""
    with _lock:
        _, name, _ = _lent.get(id(config), (config, config._attn_implementation_internal, 0))
    return "sdpa" if name == IMPLEMENTATION else name


def loan_of(model: PreTrainedModel) -> Loan:
    """The language model's configurations.

    Raises:
        UnsupportedModelError: if the model does not go through transformers' attention interface.
    """
    text = model.config.get_text_config(decoder=True)
    owners = [m for m in model.modules() if isinstance(m, PreTrainedModel) and type(m.config) is type(text)]
    if not owners:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its language model's configuration where this library does not find it"
        )
    if not all(owner._can_set_attn_implementation() for owner in owners):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not go through transformers' attention interface, so a MemoryCache can't "
            "serve it"
        )
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(config): config for config in found if type(config) is type(text)}.values())
    types, _ = layer_kinds(model.config, type(model).__name__)
    return Loan(configs, model, set(types) == {"full_attention"})
