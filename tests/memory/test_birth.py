from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from namm.memory.birth import FAR, FLOOR, NEAR, birth_rows


def reference(attention: Tensor, positions: Tensor) -> Tensor:
    """Token by token in float64, from the definition."""
    found = []
    for i, row in enumerate(attention.double()):
        own = len(positions) - len(attention) + i
        ages = positions[own] - positions
        first = row[positions == 0].sum()
        others = row[(ages > 1) & (positions != 0)]
        sums = [row[ages == 0], row[ages == 1], first, row[(ages > 1) & (ages <= NEAR)]]
        sums += [row[(ages > NEAR) & (ages <= FAR)], row[(ages > FAR) & (positions != 0)]]
        largest = others.max() if len(others) else row.new_zeros(())
        found.append(torch.stack([*(part.sum() for part in sums), largest, row.square().sum()]))
    return torch.stack(found).clamp_min(FLOOR).log()


@settings(max_examples=60, deadline=None)
@given(
    old=st.sampled_from([0, 1, 2, 40, FAR, FAR + 1, 400]),
    new=st.sampled_from([1, 2, 17, 64, 200]),
    gap=st.integers(1, 4),
    first=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_float64(old: int, new: int, gap: int, first: bool, half: bool, seed: int) -> None:
    """Of tokens some of whose elders are gone, maybe the first one too."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randint(1, gap + 1, (old + new,), generator=generator, dtype=torch.int32)
    gaps[old:] = 1  # new tokens are all there
    positions = gaps.cumsum(0, dtype=torch.int32) - (gaps[0] if first else 0)
    logits = 3 * torch.randn(new, old + new, generator=generator)
    future = torch.ones(new, old + new, dtype=torch.bool).triu(old + 1)
    attention = logits.masked_fill(future, -torch.inf).softmax(-1).to(torch.bfloat16 if half else torch.float32)
    before = attention.clone()
    # sums that are differences are off by some 1e-7, which at the floor of 1e-4 is 1e-3 of it
    torch.testing.assert_close(
        birth_rows(attention, positions).double(), reference(attention, positions), atol=4e-3, rtol=0
    )
    assert torch.equal(attention, before)
