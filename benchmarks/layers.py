"""Layers of one cache without a model around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from namm.cache.arithmetic import AttentionForm
from namm.cache.engines import ENGINES
from namm.cache.layer import MemoryLayer
from namm.cache.padding import Padding
from namm.policies import Policy


class NoLoan:
    """Of a model that is not there."""

    def borrow(self) -> None: ...
    def give_back(self) -> None: ...
    def keep_cache(self) -> None: ...
    def drop_cache(self) -> None: ...


@dataclass
class Layers:
    """Two layers, or as many as are wanted, as a model would drive them."""

    policy: Policy
    engine: str
    form: AttentionForm
    count: int = 2
    bits: int | None = None
    layers: list[MemoryLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        loan: Any = NoLoan()
        padding, engine = Padding(), partial[Any](ENGINES[self.engine], bits=self.bits)
        self.layers = [MemoryLayer(i, self.policy, padding, loan, engine=engine) for i in range(self.count)]
        self.layers[-1].before = self.layers[:-1]

    @torch.no_grad()
    def feed(self, tensors: Sequence[Sequence[Tensor]], mask: Tensor | None = None) -> list[Tensor]:
        """Outputs of each layer for its queries, keys and values ``[rows, heads, tokens, width]``."""
        outputs = []
        for layer, (query, keys, values) in zip(self.layers, tensors, strict=True):
            layer._handed = keys, values
            outputs.append(layer.attend(query, mask, self.form))
        return outputs

    def hide(self, hidden: Sequence[Tensor]) -> None:
        for layer in self.layers:
            layer.engine.hide(hidden)

    def select(self, order: Sequence[int]) -> None:
        for layer in self.layers:
            layer.batch_select_indices(torch.tensor(order))

    def settle(self, rows: Sequence[int] | None) -> None:
        for layer in self.layers:
            layer.settle(rows)
        engines = [layer.engine for layer in self.layers]
        engines[0].decide(engines)

    def held(self) -> list[dict[str, Tensor]]:
        """Columns of every head, all invariants checked."""
        for layer in self.layers:
            layer.check()
        return [row.store.head(h) for layer in self.layers for row in layer.rows for h in range(row.store.heads)]


def random_tokens(
    rows: int, heads: int, group: int, tokens: int, width: int, layers: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Queries, keys and values of each layer."""
    return [
        [torch.randn(rows, n, tokens, width, generator=generator) for n in (heads * group, heads, heads)]
        for _ in range(layers)
    ]
