from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from refined import CONFIG, middling

from namm.learning import RefineConfig
from namm.learning.refine.probe import Example
from namm.learning.refine.regression import (
    SINK_SCORE,
    SINK_WEIGHT,
    advantage,
    find_multiplier,
    fit,
    moves,
    weights,
)

AGES = torch.zeros(20, dtype=torch.int32)


def examples(count: int = 40) -> list[Example]:
    """Of heads in which the newer half of the tokens gains something, which the features tell."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        seen = torch.randn(20, CONFIG.observed, generator=generator)
        seen[:, 1] = torch.linspace(-1, 1, 20)
        gain = 1e-6 * (seen[:, 1] > 0) + 3e-6 * torch.randn(20, generator=generator)
        found.append(
            Example(seen.half(), AGES[:20], torch.randn(20, generator=generator), gain, torch.zeros(20).bool())
        )
    return found


@pytest.mark.fault("E", siblings="moves and multiplier share the one place where advantages are bounded")
def test_advantages_are_bounded_on_both_sides() -> None:
    gain = torch.tensor([-4.0, -1.0, 0.0, 2.0, 5.0, 100.0])
    assert advantage(gain, 2.0, 1.2).tolist() == pytest.approx([-1.2, -1.2, -1.0, 0.0, 1.2, 1.2])
    example = Example(torch.zeros(6, CONFIG.observed), AGES[:6], torch.zeros(6), gain, torch.zeros(6).bool())
    assert moves(example, 2.0, 1.2, 0.5).tolist() == pytest.approx([-0.6, -0.6, -0.5, 0.0, 0.6, 0.6])


@pytest.mark.fault("E", siblings="the newest token, on which nothing is decided")
def test_a_gain_counts_for_no_more_than_the_bound() -> None:
    """19 tokens to decide on: one gains far beyond the bound of 9, 18 gain g: 9 + 18 (g / multiplier - 1) = 0."""
    gain = torch.full((20,), 1e-6)
    gain[3] = gain[-1] = 1.0  # the newest stays anyway and says nothing
    none = torch.zeros(20)
    example = Example(torch.zeros(20, CONFIG.observed), AGES[:20], none, gain, none.bool())
    assert find_multiplier([example], 9.0) == pytest.approx(2e-6, rel=1e-3)


def test_the_multiplier_balances_what_is_near_the_threshold() -> None:
    given = examples()
    found = find_multiplier(given, 1e3)
    total = sum(float(((x.gain / found - 1) / (1 + x.scores.square()))[:-1].sum()) for x in given)
    assert 1e-7 < found < 2e-6 and abs(total) < 1


def test_neither_sinks_nor_the_newest_tokens_set_the_multiplier() -> None:
    given = examples()
    last, fourth = torch.arange(20) == 19, torch.arange(20) == 4
    spoilt = [replace(x, gain=x.gain + 1e-3 * (last | fourth), sinks=fourth) for x in given]
    assert find_multiplier(spoilt, 1e3) == find_multiplier([replace(x, sinks=fourth) for x in given], 1e3)


def test_sinks_are_lifted_and_weigh_more_and_the_newest_weighs_nothing() -> None:
    sinks = torch.tensor([True, True, False, False])
    example = Example(
        torch.zeros(4, CONFIG.observed), AGES[:4], torch.tensor([-1.0, 9.0, 0.0, 0.0]), -torch.ones(4), sinks
    )
    assert moves(example, 1.0, 300.0, 0.4).tolist() == pytest.approx([SINK_SCORE + 1, 0.0, -0.8, -0.8])
    assert weights(example).tolist() == pytest.approx([SINK_WEIGHT / 4, SINK_WEIGHT / 4, 0.25, 0.0])


def test_what_attention_rests_on_is_not_lowered() -> None:
    given = [
        replace(
            example, sinks=example.observed[:, 1] < -0.8, gain=example.gain - 1e-4 * (example.observed[:, 1] < -0.8)
        )
        for example in examples(200)
    ]
    start = middling()
    features = start.features(examples(1)[0].observed.float(), AGES[:20])
    fitted = fit(start, [given], RefineConfig(steps=200, stride=0.2), 300.0)
    moved = fitted.scores(features) - start.scores(features)
    assert float(moved[:2].min()) > -0.5, "with a hundred times the multiplier lost, it would have gone far"
    unsafe = [replace(example, scores=torch.full((20,), -2.0)) for example in given]
    raised = fit(start, [unsafe], RefineConfig(steps=200, stride=0.2), 300.0).scores(features) - start.scores(features)
    assert float(raised[:2].min()) > 1.0, "from two below the threshold to one above it"


@pytest.mark.parametrize("most", [1e-6, -1e-6])
def test_a_multiplier_is_not_found_beyond_the_bound(most: float) -> None:
    """Small gains of most tokens do not outweigh large losses of the others, whatever is cut off at the bound."""
    mixed = [replace(example, gain=torch.where(torch.arange(20) % 2 == 0, most, -5e-6)) for example in examples()]
    with pytest.raises(ValueError, match="gained nothing"):
        find_multiplier(mixed, 300.0)


def test_a_gain_that_is_no_number_is_refused() -> None:
    spoilt = [replace(example, gain=example.gain * math.nan) for example in examples(2)]
    with pytest.raises(ValueError, match="NaN"):
        find_multiplier(spoilt, 300.0)


def test_a_harmful_memory_has_no_multiplier() -> None:
    harmful = [replace(example, gain=-example.gain.abs() - 1e-6) for example in examples()]
    with pytest.raises(ValueError, match="gained nothing"):
        find_multiplier(harmful, 300.0)


def test_fitting_raises_the_scores_of_what_gains() -> None:
    start = middling()
    fitted = fit(start, [examples(200)], RefineConfig(steps=200, stride=0.2), 300.0)
    features = torch.stack([start.features(example.observed.float(), AGES[:20]) for example in examples(30)])
    moved = fitted.scores(features) - start.scores(features)
    assert float(moved[:, 10:].mean() - moved[:, :10].mean()) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 9, 19])
def test_few_steps_are_taken_too(steps: int) -> None:
    done: list[int] = []
    fit(middling(), [examples(20)], RefineConfig(steps=steps), 300.0, lambda step, loss: done.append(step))
    assert done == list(range(1, steps + 1))


@pytest.mark.parametrize(
    "values", [{"bounds": ()}, {"fractions": (0.5, 0.1)}, {"stride": 0.0}, {"stride": math.nan}, {"recall": -1.0}]
)
def test_bad_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="bad settings"):
        RefineConfig(**values)  # type: ignore[arg-type]
