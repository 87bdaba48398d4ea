from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from namm import NAMM
from namm.policies import Full, NAMMPolicy

pytest.importorskip("sklearn", reason="scikit-learn, of the extra `video`, is missing")
video = importlib.import_module("video")


@pytest.fixture(scope="module")
def clips():
    return video.Clips("test")


def test_digits_of_the_test_are_never_in_training(clips) -> None:
    train = video.Clips("train")
    assert len(train.labels) + len(clips.labels) == 1797 and len(clips.labels) > 300
    assert not {image.tobytes() for image in train.digits} & {image.tobytes() for image in clips.digits}


def test_scenes_begin_where_they_are_said_to(clips) -> None:
    """The ground of a frame, most of its pixels, has the colour of its scene; and the digit drifts."""
    clip, colours, digits, starts = clips.draw((3,), 60)
    assert clip.shape == (60, 3, video.SIDE, video.SIDE) and len(colours) == len(digits) == len(starts) == video.SCENES
    ground = np.median(clip, axis=(2, 3))
    nearest = np.square(ground[:, None] - video.COLOURS).sum(-1).argmin(1)
    scene = np.searchsorted(starts, np.arange(60), side="right") - 1
    assert starts[0] == 0 and (nearest == colours[scene]).all()
    assert np.array_equal(clips.draw((3,), 60)[0], clip) and not np.array_equal(clips.draw((4,), 60)[0], clip)


def test_a_digit_is_what_its_label_says(clips) -> None:
    clip, colours, digits, starts = clips.draw((3,), 60)
    for start, colour, digit in zip(starts, colours, digits, strict=True):
        channel = video.COLOURS[colour].argmin()  # where ink stands out most
        frame = clip[start, channel]
        cuts = [frame[row : row + 16, column : column + 16] for row in (0, 8, 16) for column in (0, 8, 16)]
        cut = max(cuts, key=lambda one: one.sum())
        found = np.square(clips.digits - cut).sum((1, 2)).argmin()
        assert clips.labels[found] == digit


def test_questions_have_their_own_answers(clips) -> None:
    inputs, answers, starts = clips.batch((5,), 2, 20, 3)
    assert starts.shape == (2, video.SCENES) and answers.shape == (2, 3)
    for number, row in enumerate(inputs["input_ids"].tolist()):
        _, colours, digits, _ = clips.draw((5, number), 20)
        seen, asked = row[: 1 + 20 * video.PER_FRAME], row[1 + 20 * video.PER_FRAME :]
        assert seen == [video.START] + [video.VIDEO] * (20 * video.PER_FRAME)
        assert len(asked) == 3 * 3 - 1, "the last question has no answer behind it"
        for question, answer in enumerate(answers[number].tolist()):
            scene = colours.tolist().index(asked[3 * question + 1] - video.COLOUR)
            assert answer == video.DIGIT + digits[scene]
            assert asked[3 * question + 2 : 3 * question + 3] in ([answer], [])


def test_a_clip_is_decided_on_before_its_question_and_read_as_in_one_call(clips, memory: Path) -> None:
    model = video.make_model().eval()
    inputs, _, _ = clips.batch((10**6, 0), 1, 48, 1)
    answers = inputs["input_ids"].new_tensor([[model(**inputs).logits[0, -1].argmax()]])
    row, held = video.watch(model, Full(), Answered(clips, answers), 0, 48)
    assert row["correct"] and row["kept"] == 1 and held == pytest.approx(np.ones(48))
    row, held = video.watch(model, NAMMPolicy(NAMM.from_pretrained(memory), kept=0.25), clips, 0, 48)
    assert row["kept"] == pytest.approx(0.25, abs=0.02) and held.mean() == pytest.approx(0.25, abs=0.02)


class Answered:
    """Clips with other answers."""

    def __init__(self, clips, answers) -> None:
        self.clips, self.answers = clips, answers

    def batch(self, *arguments):
        inputs, _, starts = self.clips.batch(*arguments)
        return inputs, self.answers, starts


@pytest.mark.fault("D25", siblings="every example printed its bars to standard output")
def test_the_recipe_from_nothing_to_the_table(call, memory: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        call(video, "evaluate", out)
    call(video, "train", out, "--updates", 4, "--frames", 16)
    table = call(video, "evaluate", out, "--frames", 16, "--clips", 2, "--memory", memory)
    for expected in ("full", "namm, aimed at 0.5", "namm, aimed at 0.125", "h2o", "streaming", "random", "1.000 "):
        assert expected in table
    assert not re.search(r"\d:\d\d:\d\d", table), "no times in what is compared below"
    assert (out / "frames.png").read_bytes().startswith(b"\x89PNG")
    results = (out / "clips.jsonl").read_text()
    monkeypatch.setattr(video, "draw", lambda *_: None)
    monkeypatch.setattr(video, "watch", lambda *_: pytest.fail("measured again"))
    assert call(video, "evaluate", out, "--frames", 16, "--clips", 2, "--memory", memory) == table
    assert (out / "clips.jsonl").read_text() == results
