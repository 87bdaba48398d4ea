from __future__ import annotations

import numpy as np
import pytest
import torch

from namm.memory.key_value import key_value_features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_definition_in_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = (torch.randn(50, 8, generator=generator) + 1).to(dtype)
    values = torch.randn(50, 6, generator=generator).to(dtype)
    k, v = keys.double().numpy(), values.double().numpy()
    norm = np.linalg.norm
    alike = k @ k.mean(0) / (norm(k, axis=1) * norm(k.mean(0)))
    expected = np.stack([np.log(norm(v, axis=1)), np.log(norm(k, axis=1)), np.log(norm(v - v.mean(0), axis=1)), alike])
    np.testing.assert_allclose(key_value_features(keys, values).numpy(), expected.T, atol=1e-5)


def test_zeros_are_no_nan() -> None:
    assert torch.isfinite(key_value_features(torch.zeros(3, 4), torch.zeros(3, 4))).all()
