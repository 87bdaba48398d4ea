"""How many operations a block and a step of decoding take: a GPU launches each, and a CPU prepares each."""

from __future__ import annotations

import pytest
import torch
from launches import Operations
from layers import Layers, random_tokens

from namm import NAMM, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.memory.config import UNIVERSAL
from namm.policies import NAMMPolicy

INTERVAL = UNIVERSAL.update_interval


def counts(engine: str, rows: int, heads: int = 3, *, config: NAMMConfig = UNIVERSAL) -> tuple[int, int]:
    """Of one block that ends with a decision of the layer and one of all layers, and of one token."""
    policy = NAMMPolicy(NAMM(config), kept=0.25)
    layers = Layers(policy, engine, AttentionForm(0.25), count=1)
    generator = torch.Generator().manual_seed(0)

    def feed(tokens: int) -> int:
        tensors = [[t.bfloat16() for t in own] for own in random_tokens(rows, heads, 4, tokens, 16, 1, generator)]
        with Operations() as counter:
            layers.feed(tensors)
        return counter.computed

    for _ in range(3):
        feed(INTERVAL)
    block = feed(INTERVAL)
    feed(1)  # makes room for more
    return block, feed(1)


@pytest.mark.parametrize(("rows", "heads"), [(1, 3), (4, 3), (1, 8), (4, 8)])
def test_the_padded_engine_takes_few_at_any_number_of_rows_and_heads(rows: int, heads: int) -> None:
    block, step = counts("padded", rows, heads)
    assert block <= 200 and step <= 18


@pytest.mark.parametrize(("rows", "most"), [(1, 500), (4, 2000)])
def test_the_loops_take_no_more_than_they_did(rows: int, most: int) -> None:
    block, step = counts("loops", rows)
    assert block <= most and step <= 32 * rows + 32


def test_the_counter_counts_what_is_computed() -> None:
    a = torch.ones(4, 4)
    with torch.no_grad(), Operations() as counter:
        (a[1:, :2] + 1).T.contiguous()
    assert counter.computed == 2 and counter.found["slice"] == 2
