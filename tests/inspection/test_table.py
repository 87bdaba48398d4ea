from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from namm.inspection import class_shares, plot_classes
from namm.inspection.table import HEADINGS, cells


def made(by_rule, kept: np.ndarray, updates: tuple[int, ...]):
    """An inspection of one layer with two heads, the second of which holds everything."""
    forgotten = np.full((1, 2, len(kept)), len(updates), dtype=np.int16)
    forgotten[0, 0, ~kept] = len(updates) - 1
    spans = np.stack([np.arange(len(kept)), np.arange(len(kept)) + 1], axis=1)
    return replace(by_rule, text="x" * len(kept), spans=spans, updates=updates, forgotten=forgotten)


def test_one_text_by_hand(by_rule) -> None:
    classes = ["number"] * 10 + ["punctuation"] * 30 + ["number"] * 20 + ["punctuation"] * 20
    kept = np.zeros(80, dtype=bool)
    kept[:10] = kept[40:50] = True
    numbers, marks = class_shares([(made(by_rule, kept, (40, 80)), classes)], "prose")
    assert (numbers.name, numbers.tokens, numbers.share, numbers.units) == ("number", 30, 30 / 80, 2)
    assert numbers.kept == pytest.approx((20 * 1 + 10 * 0.5) / 30)
    # of the first block all 10 against (10 + 30 / 2) / 40 on average; of the second 15 of 20 against 25 / 40
    ratios = [1 / 0.625, 0.75 / 0.625]
    assert numbers.relative == pytest.approx(np.mean(ratios))
    assert numbers.interval == pytest.approx(12.706205 * np.std(ratios, ddof=1) / math.sqrt(2))
    assert marks.kept == 0.5 and marks.relative == pytest.approx(0.5 / 0.625)


def test_of_several_texts_each_is_a_unit(by_rule) -> None:
    kept = np.arange(40) < 20
    first = made(by_rule, kept, (40,)), ["number"] * 20 + ["punctuation"] * 20
    second = made(by_rule, kept, (40,)), ["number"] * 5 + ["punctuation"] * 35
    numbers, marks = class_shares([first, second], "prose")
    assert (numbers.tokens, numbers.units) == (25, 1), "five tokens, of which 3.75 should be kept, are too few"
    assert numbers.relative == pytest.approx(1 / 0.75) and math.isnan(numbers.interval)
    assert marks.units == 2
    assert marks.relative == pytest.approx(np.mean([0.5, (15 + 20 * 0.5) / 35]) / 0.75)


def test_cells_and_chart(by_rule, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    few = class_shares(
        [(made(by_rule, np.ones(40, dtype=bool), (40,)), ["number"] * 4 + ["punctuation"] * 36)], "prose"
    )
    assert [len(cells(line)) for line in few] == [len(HEADINGS)] * 2
    assert cells(few[0])[5] == "" and cells(few[1])[5] == "1.00"
    plot_classes(few, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000
