import math

import numpy as np
import pytest
import torch

from namm import NAMM, NAMMConfig
from namm.evolution.space import SPACES
from namm.evolution.strategy import STRATEGIES, finite, make_strategy

START = np.full(6, 0.5)


def sphere(candidates: np.ndarray) -> list[float]:
    return [-float(np.square(candidate).sum()) for candidate in candidates]


def run(name: str, generations: int, seed: int = 3):
    strategy = make_strategy(name, START, 0.2, 12, seed)
    for _ in range(generations):
        strategy.tell(sphere(strategy.ask()))
    return strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_climbs_and_repeats_itself(name):
    first, again = run(name, 25), run(name, 25)
    assert sphere(first.mean[None])[0] > sphere(START[None])[0]
    np.testing.assert_array_equal(first.mean, again.mean)
    assert first.sigma == again.sigma
    assert not np.array_equal(first.mean, run(name, 25, seed=4).mean)


def test_cma_beats_random_search():
    assert sphere(run("cma", 40).mean[None])[0] > sphere(run("random", 40).mean[None])[0]


@pytest.mark.fault("E", siblings="the separable variant")
@pytest.mark.parametrize("name", ["cma", "cma-separable"])
def test_the_mean_moves_to_the_weighted_better_half(name):
    """Hansen 2016, equations 41, 49 and 53: positive weights ln((population + 1) / 2) - ln(rank), the others 0."""
    strategy = make_strategy(name, START, 0.2, 12, 3)
    candidates = strategy.ask()
    fitnesses = sphere(candidates)
    weights = np.log(6.5) - np.log(np.arange(1, 7))
    elite = candidates[np.argsort(fitnesses)[::-1][:6]]
    strategy.tell(fitnesses)
    np.testing.assert_allclose(strategy.mean, weights @ elite / weights.sum(), atol=1e-9)


def test_the_global_generator_of_numpy_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    run("cma", 3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_candidates_stay_the_same_until_they_are_judged(name):
    strategy = make_strategy(name, START, 0.2, 4, 0)
    np.testing.assert_array_equal(strategy.ask(), strategy.ask())


def test_snes_follows_the_natural_gradient_of_the_rank():
    """Schaul et al. 2011, algorithm 1, with the utilities of Wierstra et al. 2014, table 1."""
    strategy = make_strategy("snes", START, 0.2, 4, 3)
    candidates = strategy.ask()
    np.testing.assert_allclose(candidates[:2] + candidates[2:], 2 * np.stack([START, START]))
    strategy.tell([1.0, 3.0, 2.0, -math.inf])
    best = np.log(3) - np.log([1, 2])
    utilities = np.array([*(best / best.sum()), 0, 0]) - 1 / 4
    steps = (candidates[[1, 2, 0, 3]] - START) / 0.2
    np.testing.assert_allclose(strategy.mean, START + 0.2 * utilities @ steps)
    rate = (3 + math.log(6)) / (5 * math.sqrt(6))
    sigmas = 0.2 * np.exp(rate / 2 * (utilities @ (steps**2 - 1)))
    assert strategy.sigma == pytest.approx(float(np.exp(np.log(sigmas).mean())))


def test_snes_beats_random_search():
    assert sphere(run("snes", 40).mean[None])[0] > sphere(run("random", 40).mean[None])[0]


def test_failed_candidates_are_worse_than_all_others():
    assert finite([1.0, -math.inf, 3.0, math.nan]) == [1.0, 0.0, 3.0, 0.0]
    assert finite([-math.inf, -math.inf]) == [-1.0, -1.0]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        make_strategy("cma", START, 0.1, 1, 0)
    with pytest.raises(ValueError, match="cma-separable"):
        make_strategy("adam", START, 0.1, 4, 0)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_begins_at_its_start_and_moves_what_it_names(name):
    start = NAMM(NAMMConfig(hidden=4))
    space = SPACES[name](start)
    flat = space.flat(np.zeros((2, space.dimensions)))
    torch.testing.assert_close(flat, start.flat.expand(2, -1))
    moved = space.flat(np.ones((1, space.dimensions)))[0] != start.flat
    features = start.config.features
    assert moved[-features - 1 :].all()
    assert bool(moved[: -features - 1].any()) == (name != "scorer")


def test_gains_scale_the_features_that_attention_and_score_see():
    start = NAMM(NAMMConfig(hidden=4))
    space = SPACES["gains"](start)
    steps = np.random.default_rng(0).normal(size=(1, space.dimensions)) * 0.3
    steps[0, -1] = 0
    moved = NAMM(start.config, space.flat(steps)[0])
    gains = torch.tensor(steps[0, :-1]).float().exp()
    features = torch.randn(5, start.config.features)
    # without modulation and residual the score is linear in the features
    for memory in (start, moved):
        memory.flat[start.config.features * 12 + 12 : -start.config.features - 1] = 0
    torch.testing.assert_close(moved.scores(features), start.scores(features * gains))
