from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

import namm.learning.calibration as calibration
from namm import NAMM, MemoryCache, NAMMConfig
from namm.learning import Passage, calibrate
from namm.learning.calibration import CLOSE, FRACTIONS, TOLERANCE, Point, find_offset, kept_fraction, lengths
from namm.policies import NAMMPolicy
from namm.support.runs import Progress


def memory_at(interval: int) -> NAMM:
    return NAMM(NAMMConfig(update_interval=interval, hidden=8, ema=(0.9, 0.99), compression="log"))


def passage(tokens: int, seed: int = 0) -> Passage:
    return Passage("random", torch.randint(97, 122, (1, tokens), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.fault("A8", siblings="texts shorter than an interval, of which nothing had been decided")
@pytest.mark.parametrize("interval", [96, 160, 512, 704])
def test_what_is_aimed_at_is_what_users_get(reader, interval: int) -> None:
    """Also where the interval does not divide 512, or is longer than the text: half of what was aimed at, or twice."""
    text = passage(600)
    found = calibrate(reader, memory_at(interval), [text], 0.25)
    tokens = found.points[0].tokens
    assert tokens == {96: 480, 160: 480, 512: 512, 704: 600}[interval]
    assert [point.aim for point in found.points] == [0.5, 0.25, 0.125] and not found.missed
    for aim in (*FRACTIONS, None):
        cache = MemoryCache(reader, NAMMPolicy(found.memory, kept=aim))
        with torch.no_grad():
            reader(text.ids[:, :tokens], past_key_values=cache)
        cache.settle()
        kept = cache.stats().kept_fraction
        assert kept == pytest.approx(aim or 0.25, abs=TOLERANCE)
        assert kept == next(point.kept for point in found.points if point.aim == (aim or 0.25)), "what was reported"


def test_offsets_are_found_at_every_length_and_measured_together(reader) -> None:
    texts = [passage(1100), passage(600, seed=1)]
    seen: list[Progress] = []
    found = calibrate(reader, memory_at(96), texts, 0.7, seen.append)
    assert {(aim, tokens) for aim, tokens, _ in found.memory.config.calibration} == {
        (aim, tokens) for aim in (*FRACTIONS, 0.7) for tokens in (480, 960)
    }
    assert found.memory.config.kept == 0.7, "a fraction outside the usual is calibrated too"
    for point in found.points:
        policy = NAMMPolicy(found.memory, kept=point.aim)
        assert kept_fraction(reader, policy, texts, point.tokens) == pytest.approx(point.kept, abs=1e-6)
    assert seen[-1].done == seen[-1].total == 8 and all(now.stage == "calibrating" for now in seen)


def test_only_passages_that_are_long_enough_are_measured(reader) -> None:
    texts, policy = [passage(512), passage(256)], NAMMPolicy(memory_at(128), offset=-1e9)
    assert kept_fraction(reader, policy, texts, 512) == pytest.approx(1 / 512)
    assert kept_fraction(reader, policy, texts, 256) == pytest.approx(1 / 256)


def test_lengths_are_whole_intervals() -> None:
    assert [lengths(2100, interval) for interval in (32, 96, 160, 256, 320, 512, 1024)] == [
        [512, 1024, 2048],
        [480, 960, 1920],
        [480, 960, 1920],
        [512, 1024, 2048],
        [640, 1280],
        [512, 1024, 2048],
        [1024, 2048],
    ]
    assert lengths(200, 96) == [192] and lengths(80, 96) == [80]


class Curve:
    """What would be kept, by the offset, as a smooth curve of some width; counts how often it is asked."""

    def __init__(self, centre: float, width: float) -> None:
        self.centre, self.width, self.asked = centre, width, 0

    def __call__(self, offset: float) -> Point:
        self.asked += 1
        return Point(0.25, 512, offset, 1 / (1 + math.exp((self.centre - offset) / self.width)))


@pytest.mark.fault("E", siblings="the step was corrected by two rounds only, and the last offset was never measured")
@pytest.mark.parametrize(("width", "most"), [(0.2, 4), (0.5, 4), (1.0, 4), (2.0, 5), (4.0, 6)])
def test_an_offset_is_found_in_few_measurements_however_steep_the_curve(width: float, most: int) -> None:
    for centre in (-2.0, -0.5, 0.3, 1.0):
        curve = Curve(centre, width)
        assert find_offset(curve, 0.25, 0.0).miss <= CLOSE
        assert curve.asked <= most, "the line through two points leads there, halving does not"


@pytest.mark.fault("E", siblings="the direction of a correction")
@pytest.mark.parametrize("slope", [1 / 10, 1 / 4, 1 / 2], ids=str)
def test_offsets_are_those_of_a_line(reader, slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(model: object, policy: NAMMPolicy, passages: list[Passage], tokens: int) -> float:
        return 0.4 + slope * policy.offset_at(tokens)

    monkeypatch.setattr(calibration, "kept_fraction", kept)
    found = calibrate(reader, memory_at(512), [passage(1024)], 0.25)
    for aim, _, offset in found.memory.config.calibration:
        assert offset == pytest.approx((aim - 0.4) / slope, abs=CLOSE / slope)


def test_the_nearest_of_what_was_measured_is_taken() -> None:
    measured = iter([0.9, 0.1, 0.26, *[0.4] * 20])
    assert find_offset(lambda offset: Point(0.25, 512, offset, next(measured)), 0.25, 0.0).kept == 0.26


@pytest.mark.fault("A8", siblings="what was found was neither said nor kept anywhere")
def test_a_missed_aim_is_said(reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "kept_fraction", lambda *arguments: 0.2)
    with pytest.warns(UserWarning, match=r"missed its aim by more than 0.02: kept 0.200 for 0.5 at 512 tokens, 0.200"):
        found = calibrate(reader, memory_at(512), [passage(512)], 0.25)
    assert [(point.aim, point.kept) for point in found.missed] == [(0.5, 0.2), (0.25, 0.2), (0.125, 0.2)]
    card = found.card("A memory", "Made for a test.")
    assert card.startswith("# A memory\n\nMade for a test.\n") and "the memory aims at 0.25" in card
    assert card.endswith("| aim | 512 |\n| --- | --- |\n| 0.125 | 0.200 |\n| 0.25 | 0.200 |\n| 0.5 | 0.200 |\n")


def test_an_aim_that_is_met_is_not_warned_of(reader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calibrate(reader, memory_at(512), [passage(512)], 0.25)
    nan = replace(found, points=(Point(0.25, 512, 0.0, math.nan),))
    assert nan.missed, "a fraction of NaN is no hit"
