"""What a cache may come to hold, reckoned before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from namm.cache import MemoryCache, UnsupportedModelError
from namm.cache.codes import group_of
from namm.cache.layer import MemoryLayer
from namm.cache.packed import SINKS
from namm.policies import H2O, NAMMPolicy
from namm.policies.base import BudgetPolicy, Policy, tokens_of
from namm.support.tensors import SEGMENT

PROBED = 4  # tokens


@dataclass(frozen=True)
class LayerShape:
    """Of one layer that forgets.

    Attributes:
        heads: KV heads.
        width: of a key.
        value_width: of a value.
        element: bytes of a number.
        query: bytes of all heads' queries of one token.
    """

    heads: int
    width: int
    value_width: int
    element: int
    query: int

    def exact(self) -> int:
        """Bytes of one token of one head, with its position."""
        return (self.width + self.value_width) * self.element + torch.int32.itemsize

    def packed(self, bits: int) -> int:
        """The same with so few bits, bounds included."""
        bounds = sum(width // group_of(width) for width in (self.width, self.value_width)) * 2 * torch.bfloat16.itemsize
        return (self.width + self.value_width) * bits // 8 + bounds + torch.int32.itemsize


@dataclass(frozen=True)
class Sizes:
    """Bytes that caches of one model hold between two forward passes, at most.

    Attributes:
        layers: that forget.
        windows: of each other layer its window in tokens, and bytes of a token.
        piece: tokens that go in with one pass.
    """

    layers: Sequence[LayerShape]
    windows: Sequence[tuple[int, int]]
    piece: int

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Any, piece: int) -> Sizes:
        """Measured on a cache in which the model has read some tokens.

        Raises:
            UnsupportedModelError: if the model has layers of which nothing can be told ahead.
        """
        cache = MemoryCache(model, H2O())  # which looks at all queries
        model(torch.zeros(1, PROBED, dtype=torch.long, device=model.device), past_key_values=cache, logits_to_keep=1)
        shapes, windows = [], []
        for layer in cache.layers:
            if isinstance(layer, MemoryLayer):
                (row,) = layer.rows
                columns = row.store.head(0)
                widths = columns["keys"].shape[1], columns["values"].shape[1]
                element, query = columns["keys"].element_size(), row.query_bytes() // PROBED
                shapes.append(LayerShape(row.store.heads, *widths, element, query))
            else:
                window = getattr(layer, "sliding_window", None)
                held: Any = layer
                if window is None or held.keys is None:
                    raise UnsupportedModelError(
                        f"{type(model).__name__} has layers ({type(layer).__name__}) whose state can't be saved, so it "
                        "can't be served; serve a model of full attention, with sliding windows or without"
                    )
                windows.append((int(window), sum(t.nbytes // PROBED for t in (held.keys, held.values))))
        return cls(tuple(shapes), tuple(windows), piece)

    def most(self, policy: Policy, bits: int | None, tokens: int) -> int:
        """Of a cache that reads and says so many tokens, after every pass."""
        interval = policy.update_interval
        fresh = tokens if interval is None else min(tokens, interval)  # a whole block, while a rehearsal repeats it
        kept = math.ceil(min(tokens, _share(policy, tokens) + 1))
        state = sum(math.prod(column.shape) * column.dtype.itemsize for column in policy.state.values())
        whole = 0
        for layer in self.layers:
            unpacked = layer.exact() + state
            if bits is None or interval is None:
                columns = layer.heads * (min(tokens, kept + fresh) + _free(tokens)) * unpacked
            else:
                sinks = SINKS * (layer.width + layer.value_width) * layer.element
                frame = 2 * layer.width * torch.float32.itemsize
                columns = layer.heads * (kept * (layer.packed(bits) + state) + sinks + frame)
                columns += layer.heads * (fresh + _free(fresh)) * unpacked
            whole += columns + self._queries(layer, policy, fresh)
        return whole + self._windowed(tokens)

    def more(self, policy: Policy, bits: int | None, seen: int, undecided: int, tokens: int) -> int:
        """Of a fork of a cache that has seen so many tokens, what it holds for itself when it gets `tokens` more."""
        interval = policy.update_interval
        if interval is not None and undecided + tokens >= interval:
            return self.most(policy, bits, seen + tokens)  # a decision makes a copy
        own = sum(layer.heads * (tokens + _free(tokens)) * layer.exact() for layer in self.layers)
        queries = sum(self._queries(layer, policy, undecided + tokens) for layer in self.layers)
        return own + queries + self._windowed(seen + tokens)

    def _queries(self, layer: LayerShape, policy: Policy, fresh: int) -> int:
        if policy.queries == 0 or policy.update_interval is None:
            return 0
        held = fresh if policy.queries is None else min(fresh, policy.queries)
        carried = policy.carry * (layer.query + layer.query // layer.element * torch.float32.itemsize)
        return (held + min(SEGMENT, held // 4)) * layer.query + carried

    def _windowed(self, tokens: int) -> int:
        return sum(min(tokens, window + self.piece) * size for window, size in self.windows)


def _free(tokens: int) -> int:
    """Free slots that a head of so many tokens has at most: room to grow, see `TokenStore.append`, rounded up."""
    room = min(SEGMENT, tokens // 4)
    step = SEGMENT if tokens + room > 4 * SEGMENT else SEGMENT // 4 if tokens + room > SEGMENT else SEGMENT // 16
    return room + step


def _share(policy: Policy, tokens: int) -> float:
    """Tokens that a policy leaves of so many, mean over heads and layers; all of them where nothing bounds it."""
    if isinstance(policy, NAMMPolicy):
        return tokens if policy.share is None else tokens_of(policy.share, tokens)
    return tokens_of(policy.budget, tokens) if isinstance(policy, BudgetPolicy) else tokens
