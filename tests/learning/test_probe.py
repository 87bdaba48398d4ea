from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, middling, passages

from namm import NAMM
from namm.learning import Passage
from namm.learning.refine.probe import CUE, QUOTE, SINK, attention_received, example_of, make_probe, run_probe
from namm.learning.refine.rollout import Decision
from namm.memory.features import observe, observed


def test_a_probe_marks_answers_and_quotation(characters) -> None:
    (passage,) = passages(1)
    probe = make_probe(passage, characters, random.Random(0))
    recalled = bytes(probe.ids[0, probe.recalled].tolist()).decode()
    assert probe.passage == 96 and min(probe.recalled) > 96
    assert all(fact.answer in recalled for fact in passage.facts)
    assert torch.equal(probe.ids[:, :96], passage.ids)


@pytest.mark.fault("E", siblings="where a passage is cut from its document")
def test_quotations_are_from_anywhere_but_the_first_token(characters) -> None:
    passage = Passage("long", torch.arange(1000)[None])
    begins = []
    for seed in range(40):
        probe = make_probe(passage, characters, random.Random(seed))
        ids = probe.ids[0].tolist()
        quote = [ids[position] for position in probe.recalled]
        assert len(quote) == QUOTE - CUE
        begin = quote[0] - CUE
        assert ids[probe.recalled[0] - CUE : probe.recalled[-1] + 1] == list(range(begin, begin + QUOTE))
        begins.append(begin)
    assert min(begins) >= 1 and max(begins) <= 1000 - QUOTE
    assert min(begins) < 200 and max(begins) > 700 and len(set(begins)) > 20


@pytest.mark.parametrize("bands", [(), ((0, 0), (1, 16))])
@pytest.mark.parametrize("compression", ["log", "none"])
def test_attention_is_read_off_what_was_observed(bands, compression) -> None:
    config = replace(
        CONFIG, bands=bands, compression=compression, birth=True, update_interval=32, state_dtype="float32"
    )
    signal = torch.full((32 + config.spectrogram.carry, 5), 0.03)
    columns = {name: torch.zeros(5, *column.shape) for name, column in config.state.items()}
    columns["positions"] = torch.arange(5)
    for _ in range(40):
        observe(columns, signal, 0, config)
    assert attention_received(NAMM(config), observed(columns, config)) == pytest.approx(
        torch.full((5,), 0.03), rel=1e-3
    )


def test_a_first_band_that_is_not_the_mean_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="bin 0 alone"):
        attention_received(NAMM(replace(CONFIG, bands=((0, 3),))), torch.zeros(5, 2))


def test_a_token_gains_what_it_saved_a_block() -> None:
    found = torch.zeros(4, CONFIG.observed)
    found[:, 0] = -9.0  # hardly any attention
    credit, blocks = torch.tensor([-6.0, 2.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 0.0, 0.0])
    positions, kept = torch.arange(4), torch.ones(4, dtype=torch.bool)
    decision = Decision(0, 0, 0, found, torch.zeros(4), positions, kept, credit, blocks)
    example = example_of(NAMM(CONFIG), decision)
    assert example.gain.tolist() == [2.0, -2.0, 0.0, 0.0] and not example.sinks.any()


def test_sinks_are_what_far_more_attention_rests_on_than_an_equal_share() -> None:
    """Of 400 tokens each has 0.0025 at an equal share: `SINK` counts. Of 20 it is five times 0.05."""

    def sinks(tokens: int, attention: float) -> int:
        found = torch.full((tokens, CONFIG.observed), -9.0)
        found[3, 0] = torch.tensor(attention * CONFIG.window / 2).log()
        whole, none = torch.ones(tokens), torch.zeros(tokens)
        decision = Decision(0, 0, 0, found, none, torch.arange(tokens), whole.bool(), none, whole)
        return int(example_of(NAMM(CONFIG), decision).sinks.sum())

    assert [sinks(400, attention) for attention in (SINK * 0.9, SINK * 1.1)] == [0, 1]
    assert [sinks(20, attention) for attention in (0.24, 0.26)] == [0, 1]


def test_what_is_recalled_counts_as_much_as_it_is_told_to(reader, characters) -> None:
    (passage,) = passages(1, tokens=160)
    probe = make_probe(passage, characters, random.Random(0))

    def gains(recall: float) -> torch.Tensor:
        found, _ = run_probe(reader, middling(), probe, 0.4, scored=60, recall=recall, rng=random.Random(0))
        assert found and all(len(example.gain) <= 128 for example in found), "no example after the last block"
        return torch.cat([example.gain for example in found])

    without, some, more = gains(0.0), gains(1.0), gains(2.0)
    assert (without != 0).float().mean() > 0.8, "also the last decision of an example has a block to be judged by"
    assert not torch.allclose(without, some) and torch.allclose(more - some, some - without, atol=1e-6)


def test_a_memory_that_keeps_everything_diverges_nowhere(reader, characters) -> None:
    (passage,) = passages(1, tokens=160)
    probe = make_probe(passage, characters, random.Random(0))
    _, reading = run_probe(reader, middling(), probe, 1.0, scored=60, recall=1.0, rng=random.Random(0))
    assert reading.kept == 1 and reading.passage == pytest.approx(0, abs=1e-6) == reading.recall
    _, reading = run_probe(reader, middling(), probe, 0.01, scored=60, recall=1.0, rng=random.Random(0))
    assert reading.kept == pytest.approx(0.01, abs=0.005) and reading.passage > 1e-5 and reading.recall > 1e-5
