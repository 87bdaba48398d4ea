from __future__ import annotations

import math

import pytest
from evaluated import ROWS

from namm.evaluation.plots import _mean, plot_grid, plot_scores
from namm.evaluation.table import lines


def test_pictures_are_drawn(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    plot_scores(lines(ROWS), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert plot_grid(ROWS, tmp_path / "grid.png") and (tmp_path / "grid.png").stat().st_size > 1000
    assert not plot_grid([each for each in ROWS if not each["place"]], tmp_path / "none.png")


def test_a_cell_of_the_grid_is_the_mean_of_its_place() -> None:
    rows = [
        {"place": {"depth": 0.5, "length": length}, "score": score} for length, score in ((1, 0.2), (1, 0.4), (2, 1))
    ]
    assert _mean(rows, 0.5, 1) == pytest.approx(0.3)
    assert math.isnan(_mean(rows, 0.0, 1))
