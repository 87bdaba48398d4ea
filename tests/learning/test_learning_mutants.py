"""What no other test of learning would notice; each of these catches a mutation of `mutants.py`."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from refined import CONFIG

from namm import NAMM
from namm.learning.calibrate import FRACTIONS, calibrate
from namm.learning.descent import padded
from namm.learning.passages import Passage, cut_passages
from namm.learning.refine.learn import price_of
from namm.learning.refine.lessons import CUE, QUOTE, Lesson, make_exam
from namm.policies import NAMMPolicy
from namm.tasks import Document


@pytest.mark.fault("E", siblings="the newest token, on which nothing is decided")
def test_a_place_counts_for_no_more_than_the_bound() -> None:
    """19 tokens to decide on: one is worth far beyond the bound of 9, 18 are worth w: 9 + 18 (w / price - 1) = 0."""
    worth = torch.full((20,), 1e-6)
    worth[3] = worth[-1] = 1.0  # the newest stays anyway and says nothing
    none = torch.zeros(20)
    lesson = Lesson(torch.zeros(20, CONFIG.features), none, worth, none.bool())
    assert price_of([lesson], 9.0) == pytest.approx(2e-6, rel=1e-3)


@pytest.mark.fault("E", siblings="the direction of a correction")
@pytest.mark.parametrize("slope", [1 / 10, 1 / 4, 1 / 2], ids=str)
def test_calibration_follows_the_slope_that_it_sees(slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is kept is linear in the offset, the secant method is exact from its second step on."""

    def kept(model: object, policy: NAMMPolicy, passages: list[Passage]) -> dict[int, float]:
        return {512: 0.4 + slope * policy.offset_at(512)}

    monkeypatch.setattr(sys.modules["namm.learning.calibrate"], "kept_fractions", kept)
    passage = Passage("a", torch.zeros(1, 512, dtype=torch.long))
    found = calibrate(None, NAMM(CONFIG), [passage], 0.25)  # type: ignore[arg-type]  # the model is not asked
    offsets = {fraction: offset for fraction, _, offset in found.config.calibration}
    assert offsets == pytest.approx({fraction: (fraction - 0.4) / slope for fraction in FRACTIONS}, abs=1e-3)


@pytest.mark.fault("E")
def test_quotations_come_from_all_of_a_passage(characters) -> None:
    passage = Passage("a", torch.arange(1000)[None])
    begins = []
    for seed in range(60):
        exam = make_exam(passage, characters, random.Random(seed))
        begins.append(int(exam.ids[0, exam.recalled[0]]) - CUE)
        assert exam.ids[0, exam.recalled].tolist() == list(range(begins[-1] + CUE, begins[-1] + QUOTE))
    thirds = {begin * 3 // (1000 - QUOTE) for begin in begins}
    assert thirds == {0, 1, 2} and 0 not in begins, "the first token may be one of its own"


def test_passages_come_from_all_of_a_document(characters) -> None:
    text = "".join(random.Random(0).choices("abcdefgh ijkl. mnop\n", k=4000))
    found = cut_passages(
        characters, [Document("a", text, "prose")], lengths=(50,), count=20, facts=0, rng=random.Random(0)
    )
    begins = [text.index(bytes(passage.ids[0].tolist()).decode()) for passage in found]
    assert begins[0] == 0 and max(begins) > 1000 and len(set(begins)) > 15


def test_older_tokens_are_padded() -> None:
    assert padded([torch.tensor([1, 2, 3]), torch.tensor([4])]).tolist() == [[1, 2, 3], [0, 0, 4]]
    assert padded([torch.ones(2, 2), torch.ones(1, 2)])[1].tolist() == [[0, 0], [1, 1]]
