from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from namm.learning.descent import NEIGHBOURS, Training, draw, padded


def test_older_tokens_are_padded() -> None:
    assert padded([torch.tensor([1, 2, 3]), torch.tensor([4])]).tolist() == [[1, 2, 3], [0, 0, 4]]
    assert padded([torch.ones(2, 2), torch.ones(1, 2)])[1].tolist() == [[0, 0], [1, 1]]


def test_a_batch_is_of_neighbours_from_everywhere() -> None:
    centres = []
    for seed in range(50):
        batch = draw(range(5000), 8, random.Random(seed))
        assert len(batch) == 8 and max(batch) - min(batch) <= 2 * NEIGHBOURS
        centres.append(batch[0])
    assert min(centres) < 1000 and max(centres) > 4000


def test_the_gradient_is_clipped_and_the_rate_rises_and_falls(tmp_path: Path) -> None:
    """Adam moves by the rate whatever the gradient's size: the first steps are shorter than those in the middle."""
    training = Training(torch.zeros(1), 0.1, 40, tmp_path / "state")
    moved = []
    for _ in training.left():
        before = training.flat.detach().clone()
        training.step(1e6 * training.flat.sum(), clip=1.0)
        moved.append(float((before - training.flat.detach()).abs()))
    assert max(moved) == pytest.approx(0.1, rel=0.2) and moved[0] < 0.02 and moved[-1] < 0.02
    assert list(Training(torch.zeros(1), 0.1, 40, tmp_path / "state").left()) == [], "what is done is done"


def test_a_loss_that_is_no_number_is_refused() -> None:
    training = Training(torch.zeros(1), 0.1, 4, None)
    with pytest.raises(ValueError, match="the loss became nan at step 0; try a smaller learning rate"):
        training.step(training.flat.sum() * float("nan"), clip=1.0)
