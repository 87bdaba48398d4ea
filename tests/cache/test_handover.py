from __future__ import annotations

import pytest
import torch

from namm import UnsupportedModelError
from namm.cache.handover import HandedTensor


@pytest.mark.parametrize(
    "compute",
    [
        lambda k: k + 1,
        lambda k: k[:, :1],
        lambda k: torch.cat([k, k]),
        lambda k: k.transpose(1, 2),
        lambda k: k.to(torch.float64),
    ],
)
def test_handed_tensors_refuse_to_be_computed_with(compute) -> None:
    handed = HandedTensor.hand(torch.zeros(1, 2, 3, 4), layer=None)  # type: ignore[arg-type]
    assert handed.shape == (1, 2, 3, 4) and handed.dtype == torch.float32 and handed.size(2) == 3
    with pytest.raises(UnsupportedModelError, match="can't be served"):
        compute(handed)
