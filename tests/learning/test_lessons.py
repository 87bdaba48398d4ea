from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, middling, passages

from namm import NAMM
from namm.learning.refine.lessons import attention_received, examine, lessons_of, make_exam
from namm.learning.refine.rollout import Decision
from namm.memory.spectrogram import update_spectrogram


def test_an_exam_marks_answers_and_quotation(characters) -> None:
    (passage,) = passages(1)
    exam = make_exam(passage, characters, random.Random(0))
    recalled = bytes(exam.ids[0, exam.recalled].tolist()).decode()
    assert exam.passage == 96 and min(exam.recalled) > 96
    assert all(fact.answer in recalled for fact in passage.facts)
    assert torch.equal(exam.ids[:, :96], passage.ids)


def test_attention_is_read_off_the_features() -> None:
    memory = NAMM(replace(CONFIG, normalised=True), mean=torch.full((34,), -2.0), variance=torch.full((34,), 4.0))
    signal = torch.full((32 + CONFIG.spectrogram.carry, 5), 0.03)
    spectrogram = torch.zeros(5, 2, 17)
    for _ in range(40):
        spectrogram = update_spectrogram(spectrogram, signal, CONFIG.spectrogram)
    features = memory.features(spectrogram, torch.arange(4, -1, -1))
    assert attention_received(memory, features) == pytest.approx(torch.full((5,), 0.03), rel=1e-3)


def test_a_place_is_worth_what_it_saved_a_block() -> None:
    features = torch.zeros(2, 4, CONFIG.features)
    features[..., 8] = -9.0  # hardly any attention
    tokens = torch.tensor([[0, 1, 2, 3], [-1, -1, 1, 3]])
    credit, blocks = torch.tensor([[-6.0, 2.0, 0.0, 0.0]] * 2), torch.tensor([[3.0, 1.0, 0.0, 0.0]] * 2)
    first, second = lessons_of(NAMM(CONFIG), Decision(0, features, torch.zeros(2, 4), tokens, credit, blocks))
    assert first.worth.tolist() == [2.0, -2.0, 0.0, 0.0] and not first.sinks.any()
    assert len(second.scores) == len(second.worth) == 2, "padding is no token"


def test_what_is_recalled_counts_as_much_as_it_is_told_to(reader, characters) -> None:
    reader.requires_grad_(False)
    (passage,) = passages(1, tokens=160)
    exam = make_exam(passage, characters, random.Random(0))

    def worths(recall: float) -> torch.Tensor:
        found, _ = examine(reader, middling(), exam, 0.4, scored=60, recall=recall, rng=random.Random(0))
        assert found and all(len(lesson.worth) <= 128 for lesson in found), "nothing is taught after the last block"
        return torch.cat([lesson.worth for lesson in found])

    without, some, more = worths(0.0), worths(1.0), worths(2.0)
    assert (without != 0).float().mean() > 0.8, "also the last decision that teaches has a block to be judged by"
    assert not torch.allclose(without, some) and torch.allclose(more - some, some - without, atol=1e-6)
