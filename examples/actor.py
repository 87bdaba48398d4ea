"""Experience to learn from: of an actor that augmented random search (arXiv 1803.07055) finds, as it gets better."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
from fitting import counted

DIRECTIONS, BEST = 8, 4  # tried in a round, each both ways; followed
NOISE, STEP = 0.03, 0.02
SAVE_EVERY = 10  # rounds
SHAKEN = (0.0, 0.15, 0.3)  # noise on the actions of the episodes to learn from, so that they show how to recover
FIELDS = ("states", "actions", "meant", "rewards", "ends")


def make_world(environment: str) -> gymnasium.Env:
    """An environment; what MuJoCo warns of is a warning of Python's, not a file in the working folder."""
    mujoco.set_mju_user_warning(warnings.warn)
    return gymnasium.make(environment)


def collect(folder: Path, environment: str, rounds: int) -> dict[str, np.ndarray]:
    """Episodes of the actor as it is at every round of the search, one for each noise in `SHAKEN`.

    Goes on after a kill from the round that was saved last, and ends as if nothing had happened.

    Returns:
        ``states [n, state_dim]``, ``actions [n, act_dim]`` as done and ``meant`` without noise, ``rewards [n]``
        float32, and ``ends [n]`` bool: last steps of episodes.
    """
    path, world = folder / "experience.npz", make_world(environment)
    size = world.observation_space.shape[0]
    found = {
        "round": np.array(0),
        "weights": np.zeros((world.action_space.shape[0], size)),
        "statistics": np.stack([np.full(size, 1e-4), np.zeros(size), np.full(size, 1e-4)]),  # count, sum, of squares
    }
    data: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    if path.exists():
        saved = dict(np.load(path))
        found = {name: saved[name] for name in found}
        data = {name: [saved[name]] for name in FIELDS}
    for number in counted(range(int(found["round"]), rounds), f"actor of {environment}"):
        for episode in _search(world, found, np.random.default_rng(number)):
            for name in FIELDS:
                data[name].append(episode[name])
        found["round"] = np.array(number + 1)
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == rounds:
            joined = {name: np.concatenate(values) for name, values in data.items()}
            np.savez(folder / "part.npz", **found, **joined)
            os.replace(folder / "part.npz", path)
    world.close()
    return {name: np.concatenate(values) for name, values in data.items()}


def _search(world: gymnasium.Env, found: dict[str, np.ndarray], random: np.random.Generator) -> list[dict]:
    """One round: moves the actor and the statistics of the states in place; the episodes to learn from."""
    count, total, squares = found["statistics"]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    weights = found["weights"]
    kept = [_episode(world, weights, mean, deviation, random, noise) for noise in SHAKEN]
    seen, tried, gains = list(kept), [], []
    for _ in range(DIRECTIONS):
        direction = random.standard_normal(weights.shape)
        pair = [_episode(world, weights + way * NOISE * direction, mean, deviation, random) for way in (1, -1)]
        seen += pair
        tried.append(direction)
        gains.append([episode["fitness"] for episode in pair])
    best = np.argsort(np.max(gains, axis=1))[-BEST:]
    chosen = np.array(gains)[best]
    slopes = (chosen[:, 0] - chosen[:, 1]) / (BEST * chosen.std() + 1e-9)
    found["weights"] = weights + STEP * np.tensordot(slopes, np.array(tried)[best], 1)
    states = np.concatenate([episode["states"] for episode in seen]).astype(np.float64)
    found["statistics"] = found["statistics"] + np.stack(
        [np.full(states.shape[1], float(len(states))), states.sum(0), np.square(states).sum(0)]
    )
    return kept


def _episode(world, weights: np.ndarray, mean: np.ndarray, deviation: np.ndarray, random, noise: float = 0.0) -> dict:
    """An episode; its fitness leaves out what is given for staying alive, which else is all that is learned."""
    state, _ = world.reset(seed=int(random.integers(2**31)))
    steps, fitness, ended = [], 0.0, False
    while not ended:
        meant = np.clip(weights @ ((state - mean) / deviation), -1, 1)
        action = np.clip(meant + noise * random.standard_normal(len(meant)), -1, 1) if noise else meant
        after, reward, terminated, truncated, told = world.step(action)
        ended = terminated or truncated
        fitness += reward - told.get("reward_survive", 0.0)
        steps.append((state, action, meant, reward, ended))
        state = after
    columns = zip(FIELDS, zip(*steps, strict=True), strict=True)
    return {name: np.array(values, bool if name == "ends" else np.float32) for name, values in columns} | {
        "fitness": fitness
    }
