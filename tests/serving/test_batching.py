"""Requests that come and go while others are served get what they would get alone."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest
import torch
from cache.sliding import sliding
from served import KEPT, Served, alone, tokens, wait_until

from namm import MemoryCache
from namm.policies import H2O, Full
from namm.serving.jobs import Ended, Piece
from namm.serving.sampling import Sampling
from namm.serving.text import TextStream

POLICIES = {"namm": KEPT, "full": Full(), "h2o": H2O(0.4, 16)}
REQUESTS = [(5, 20), (60, 4), (24, 11), (1, 1), (90, 9), (33, 26)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bits", [None, 4])
def test_every_answer_is_that_of_a_single_run(start, policy: str, bits: int | None) -> None:
    served = start(POLICIES[policy], bits, batch=4)
    text = tokens(60, 99)
    document = served.document(text)
    answers = []
    for seed, (length, new) in enumerate(REQUESTS):
        answers.append(served.generate(tokens(length, seed), new))
        answers.append(served.generate(tokens(length, seed), new, document=document))
    for seed, (length, new) in enumerate(REQUESTS):
        for answer, before in zip(answers[2 * seed : 2 * seed + 2], (None, text), strict=True):
            wanted = alone(served.model, tokens(length, seed), new, POLICIES[policy], bits, text=before)
            assert served.said(answer) == wanted, (length, new, before is not None)


def test_they_are_served_at_once(start) -> None:
    """A short request that comes later ends before a long one."""
    served = start()
    long = served.generate(tokens(10, 0), 1000)
    wait_until(lambda: served.engine.scheduler.answering)
    short = served.generate(tokens(100, 1), 5)
    assert served.said(short) == alone(served.model, tokens(100, 1), 5)
    assert not any(isinstance(event, Ended) for event in list(long.events.queue))
    served.engine.cancel(long.job)


def test_a_turn_reads_several_short_prompts_or_a_piece_of_a_long_one(start, monkeypatch: pytest.MonkeyPatch) -> None:
    served, turns, gate = start(piece=100), [], threading.Event()
    scheduler = served.engine.scheduler
    turn, read = scheduler.turn, scheduler._read

    def watched(job) -> int:
        turns[-1].append(read(job))
        return turns[-1][-1]

    monkeypatch.setattr(scheduler, "turn", lambda: (turns.append([]), turn()))
    monkeypatch.setattr(scheduler, "_read", watched)
    served.engine.ask(gate.wait)  # so that all have come before the first turn
    lengths = [5, 5, 5, 5, 5, 250]
    answers = [served.generate(tokens(length, seed), 3) for seed, length in enumerate(lengths)]
    gate.set()
    for seed, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        assert served.said(answer) == alone(served.model, tokens(length, seed), 3, piece=100)
    assert [read for read in turns if read] == [[5, 5, 5, 5], [5, 100], [100], [50]]


def test_a_single_run_is_what_generate_gives(start) -> None:
    served = start()
    ids = tokens(20, 5)
    with torch.inference_mode():
        found = served.model.generate(
            ids, past_key_values=MemoryCache(served.model, KEPT), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
    assert served.said(served.generate(ids, 40)) == found[0, 20:].tolist()


def test_a_seed_draws_the_same_whoever_else_is_there(start) -> None:
    served = start()

    def draw(seed: int | None) -> list[int]:
        return served.said(served.generate(tokens(30, 0), 20, sampling=Sampling(1.0, 0.9, seed)))

    first = draw(7)
    others = [served.generate(tokens(20 + n, n), 50, sampling=Sampling(1.0, 1.0, n)) for n in range(5)]
    assert draw(7) == first and draw(8) != first and draw(None) != draw(None)
    for other in others:
        served.said(other)


def test_what_ends_an_answer(start) -> None:
    served = start()
    wanted = alone(served.model, tokens(9, 3), 30)
    answer = served.generate(tokens(9, 3), 30, ends={wanted[12]})
    assert served.said(answer) == wanted[: wanted.index(wanted[12]) + 1]
    ended = served.generate(tokens(9, 3), 30, ends={wanted[12]}).end()
    assert isinstance(ended, Ended) and ended.reason == "stop"
    assert served.generate(tokens(9, 3), 5).end() == Ended("length", 9, 5, 0)


def test_one_that_fails_fails_alone(start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    good, bad = served.generate(tokens(9, 3), 60), served.generate(tokens(9, 4), 60)
    wait_until(lambda: len(served.engine.scheduler.answering) == 2)
    monkeypatch.setattr(bad.job.cache.layers[1].engine, "serve", lambda *given: 1 / 0)
    error = served.refusal(bad)
    assert error.status == 500 and "ZeroDivisionError" in error.message
    assert served.said(good) == alone(served.model, tokens(9, 3), 60)
    assert served.reserved() == 0


def test_what_failed_keeps_nobodys_cache(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("namm.serving"), "disabled", True)  # else pytest keeps the error
    served = start()
    good, bad = served.generate(tokens(9, 3), 60), served.generate(tokens(9, 4), 60)
    wait_until(lambda: len(served.engine.scheduler.answering) == 2)
    held = [weakref.ref(answer.job.cache.layers[0]) for answer in (good, bad)]
    gc.collect()
    gc.disable()
    try:
        served.engine.ask(lambda: monkeypatch.setattr(bad.job.cache.layers[1].engine, "serve", lambda *given: 1 / 0))
        assert served.refusal(bad).status == 500
        served.said(good)
        served.snapshot()
        monkeypatch.undo()  # it holds an engine
        assert [own() for own in held] == [None, None]
    finally:
        gc.enable()


def test_a_prompt_that_fails_fails_alone(start) -> None:
    served = start()
    good = served.generate(tokens(9, 3), 50)
    assert "bug" in served.refusal(served.generate(tokens(9, 4) + 1000, 5)).message
    assert served.said(good) == alone(served.model, tokens(9, 3), 50)


def test_text_comes_in_pieces(start) -> None:
    served = start()
    answer = served.generate(torch.tensor([list(b"To be, or not to be")]), 40)
    said, pieces = served.said(answer), []
    answer = served.generate(torch.tensor([list(b"To be, or not to be")]), 40)
    while isinstance(event := answer.events.get(timeout=60), Piece):
        pieces.append(event.text)
    assert len(pieces) > 3 and all(pieces)
    stream = TextStream(served.tokenizer)
    assert "".join(pieces) == "".join(map(stream.push, said)) + stream.end()


def test_models_with_windows_are_served_one_by_one(loaded, tmp_path) -> None:
    from namm.serving.documents import Documents
    from namm.serving.engine import Engine
    from namm.serving.settings import Settings

    model, policy = sliding(), H2O(0.5, 16)
    engine = Engine(model, policy, Documents(tmp_path / "own", model, loaded[1]), Settings(piece=24))
    served = Served(engine, model, loaded[1])
    try:
        text = tokens(60, 9) % 200
        document = served.document(text)
        prompts = [tokens(length, length) % 200 for length in (5, 50)]
        answers = [served.generate(ids, 20) for ids in prompts]
        answers += [served.generate(ids, 20, document=document) for ids in prompts]
        for ids, answer, before in zip(prompts * 2, answers, [None, None, text, text], strict=True):
            assert served.said(answer) == alone(model, ids, 20, policy, text=before)
    finally:
        engine.close()
