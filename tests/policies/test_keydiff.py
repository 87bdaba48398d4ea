from __future__ import annotations

import torch

from namm.policies import Head, KeyDiff


def test_the_score_is_the_papers() -> None:
    keys = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 51)[:, None]
    view = Head(0, 0, 0, {"keys": keys, "positions": torch.arange(50)}, 50, 50)
    exact = keys.double()
    anchor = sum(key / key.norm() for key in exact) / 50
    expected = torch.stack([-(key @ anchor) / (key.norm() * anchor.norm()) for key in exact])
    torch.testing.assert_close(KeyDiff().scores(view).double(), expected, atol=1e-6, rtol=1e-5)


def test_a_key_unlike_the_others_stays() -> None:
    keys = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-0.1, 2.0], [9.0, -0.9], [1.0, 0.0]])
    view = Head(0, 0, 0, {"keys": keys, "positions": torch.arange(5)}, 5, 5)
    assert KeyDiff(budget=2).keep(view).tolist() == [False, False, True, False, True]
