from __future__ import annotations

from pathlib import Path

import fitting
import pytest
import torch
from torch import Tensor, nn


def small() -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(4, 2)


def test_a_run_that_was_killed_ends_with_the_same_parameters(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY", 3)

    def fitted(name: str, kill_at: int | None = None) -> nn.Module:
        model = small()

        def loss_at(update: int) -> Tensor:
            if update == kill_at:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 4)) - update).square().mean()

        fitting.fit(model, loss_at, 10, tmp_path / name)
        return model

    whole = fitted("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fitted("killed.pt", kill_at=7)
    assert torch.load(tmp_path / "killed.pt", weights_only=True)["update"] == 6
    resumed = fitted("killed.pt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert fitted("killed.pt", kill_at=9).weight.equal(whole.weight), "nothing is left to do"
    assert not whole.weight.equal(small().weight) and not whole.training


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model = small()
    fitting.fit(model, lambda update: model.weight.sum(), 2, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="of a run of 2 updates, not 3"):
        fitting.fit(model, lambda update: model.weight.sum(), 3, tmp_path / "run.pt")


def test_results_are_named_by_weights_and_settings() -> None:
    weights = [torch.arange(3.0)]
    assert fitting.digest(weights, 1) == fitting.digest([torch.arange(3.0)], 1)
    assert len({fitting.digest(weights, 1), fitting.digest(weights, 2), fitting.digest([torch.ones(3)], 1)}) == 3


def test_a_clip_that_misses_its_budget_shows_and_policies_are_compared_clip_by_clip() -> None:
    rows = [{"kept": kept, "correct": right} for kept, right in ((0.25, True), (0.22, False), (0.26, True))]
    assert fitting.furthest(rows, 0.25) == pytest.approx(0.03)
    others = [{"correct": False}, {"correct": True}, {"correct": False}]
    # 1, -1 and 1: deviation 1.1547, t of two degrees of freedom 4.303
    assert fitting.apart(rows, others, "correct", ".3f") == "+0.333 ± 2.868"
    assert fitting.apart(rows, rows, "correct", ".0f") == "+0 ± 0"
