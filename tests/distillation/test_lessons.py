from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, passages

from namm import NAMM
from namm.distillation.lessons import attention_received, make_exam
from namm.spectrogram import update_spectrogram


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
