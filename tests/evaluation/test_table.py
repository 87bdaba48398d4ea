from __future__ import annotations

import json
import math

import pytest
from evaluated import ROWS, row

from namm.evaluation.table import AVERAGE, cells, lines, markdown
from namm.support.files import strict_json
from namm.support.journal import Journal
from namm.support.statistics import mean_interval, ratio_interval


def test_lines_are_means_and_shares_of_the_full_cache() -> None:
    found = {(line.task, line.policy): line for line in lines(ROWS)}
    assert found["a", "h2o"].score == pytest.approx(0.3) and found["a", "h2o"].relative == pytest.approx(0.5)
    assert found["a", "full"].relative == 1.0 and found["a", "full"].aim == 1.0
    average = found[AVERAGE, "h2o"]
    assert average.relative == pytest.approx((0.5 + 1.0) / 2) and average.samples == 3
    assert "| a | h2o | 0.500 | 0.600 | 2 | 0.300 |" in markdown(lines(ROWS))


def test_a_full_cache_that_scores_nothing_gives_no_share() -> None:
    found = lines([row("full", 0.5, "0", 0.0, 1.0), row("h2o", 0.5, "0", 0.0, 0.5)])
    assert all(math.isnan(line.relative) for line in found)


def test_every_number_of_a_line_is_a_mean_of_its_own() -> None:
    found = {(line.task, line.policy): line for line in lines(ROWS)}
    line = found["a", "full"]
    assert (line.score, line.kept, line.held, line.seconds, line.samples) == pytest.approx((0.6, 1.0, 1.1, 1.0, 2))
    half, average = found["a", "h2o"], found[AVERAGE, "h2o"]
    assert (half.kept, half.held) == pytest.approx((0.5, 0.6))
    # of two tasks, not of their three samples
    assert (average.score, average.kept, average.held) == pytest.approx(((0.3 + 0.5) / 2, 0.5, 0.6))
    assert average.relative_interval == pytest.approx(mean_interval([0.5, 1.0])[1])
    assert average.interval == pytest.approx(mean_interval([0.3, 0.5])[1])
    assert half.relative_interval == pytest.approx(0.0), "half of every sample"
    changed = [*ROWS[:3], ROWS[3] | {"score": 0.3}]
    expected = ratio_interval([0.4, 0.3], [0.8, 0.4])
    assert (lines(changed)[1].relative, lines(changed)[1].relative_interval) == pytest.approx(expected)
    assert math.isnan(found["b", "h2o"].interval) and half.interval == pytest.approx(mean_interval([0.4, 0.2])[1])


def test_models_are_kept_apart() -> None:
    other = [each | {"model": "n", "score": 1.0} for each in ROWS]
    found = lines([*ROWS, *other])
    assert [cells(line) for line in found if line.model == "m"] == [cells(line) for line in lines(ROWS)]
    assert {line.score for line in found if line.model == "n"} == {1.0}
    assert markdown(found).count("## ") == 2


def test_a_share_needs_the_full_cache_on_the_same_samples() -> None:
    found = lines([row("full", 0.5, "0", 0.8, 1.0), row("h2o", 0.5, "0", 0.4, 0.5), row("h2o", 0.5, "1", 0.4, 0.5)])
    assert math.isnan(next(line for line in found if line.policy == "h2o").relative)


def test_the_full_cache_is_one_line_at_any_budget() -> None:
    found = lines([row("full", 0.5, "0", 0.8, 1.0), row("full", 0.25, "1", 0.4, 1.0)])
    assert [(line.aim, line.samples) for line in found] == [(1.0, 2)]


@pytest.mark.fault("A10", siblings="rows of a model that overflows")
def test_a_score_that_is_no_number_stays_none_in_files(tmp_path) -> None:
    with Journal(tmp_path / "results.jsonl") as journal:
        rows = [journal.add(each["sample"], each) for each in (row("full", 0.5, "0", math.nan, 1.0), ROWS[1])]
    found = lines(rows)
    assert math.isnan(found[0].score) and found[0].samples == 2
    assert json.loads(strict_json([vars(line) for line in found]))[0]["score"] is None
