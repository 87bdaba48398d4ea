from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel, PreTrainedModel

import namm
from namm.decision import DecisionAgent, run_episode
from namm.policies import H2O, Full, NAMMPolicy, Policy, Streaming


@pytest.fixture(scope="module")
def model() -> DecisionTransformerModel:
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=5, act_dim=2, hidden_size=32, n_layer=3, n_head=2, n_inner=64, max_ep_len=60, n_positions=256
    )
    return DecisionTransformerModel(config).eval()


class Drift:
    """An environment whose state the actions move."""

    def reset(self, seed: int | None) -> tuple[Tensor, dict]:
        self.generator = torch.Generator().manual_seed(seed or 0)
        self.state, self.steps = torch.zeros(5), 0
        return self.state, {}

    def step(self, action) -> tuple[Tensor, float, bool, bool, dict]:
        noise = torch.randn(5, generator=self.generator)
        self.state = 0.9 * self.state + noise + torch.as_tensor(action).sum()
        self.steps += 1
        return self.state, float(self.state[0]), self.steps == 50, False, {}


@torch.no_grad()
def test_every_action_is_that_of_the_whole_trajectory(model: DecisionTransformerModel) -> None:
    """50 steps of an episode, against the model's own forward pass over all of it."""
    mean, deviation = torch.full((5,), 0.1), torch.full((5,), 2.0)
    agent = DecisionAgent(model, Full(), target=30.0, scale=10.0, mean=mean, deviation=deviation)
    environment = Drift()
    states, actions, to_go = [environment.reset(3)[0]], [], [3.0]
    action = agent.act(states[0])
    for _ in range(49):
        actions.append(action)
        state, reward, *_ = environment.step(action)
        states.append(state)
        to_go.append(to_go[-1] - reward / 10.0)
        action = agent.act(state, reward)
    actions.append(action)
    whole = model(
        states=((torch.stack(states) - mean) / deviation)[None],
        actions=torch.stack(actions)[None],
        returns_to_go=torch.tensor(to_go)[None, :, None],
        timesteps=torch.arange(50)[None],
    )
    torch.testing.assert_close(whole.action_preds[0], torch.stack(actions), rtol=1e-4, atol=1e-5)
    assert agent.cache.stats().seen == (3 * 50 - 1,)


@pytest.mark.parametrize(
    "policy",
    [
        NAMMPolicy(namm.NAMM(namm.NAMMConfig(update_interval=16)), offset=-0.02),
        Streaming(0.25, 16),
        H2O(0.25, 16),
    ],
    ids=["namm", "streaming", "h2o"],
)
def test_an_episode_is_forgotten_on_the_way(model: DecisionTransformerModel, policy: Policy) -> None:
    agent = DecisionAgent(model, policy, target=30.0)
    first = run_episode(Drift(), agent, seed=3)
    agent.cache.check()
    assert first.steps == 50 and 0.05 < first.kept_fraction < 0.6
    assert run_episode(Drift(), agent, seed=3) == first, "an episode begins with nothing remembered"
    assert run_episode(Drift(), agent, seed=4).reward != first.reward
    assert run_episode(Drift(), agent, seed=3, steps=7).steps == 7


@pytest.mark.parametrize("steps", [20, 47])
@pytest.mark.parametrize("kept", [0.5, 0.25])
def test_a_budget_holds_at_the_end_of_an_episode(model: DecisionTransformerModel, kept: float, steps: int) -> None:
    policy = NAMMPolicy(namm.NAMM(namm.NAMMConfig(update_interval=48)), kept=kept)
    episode = run_episode(Drift(), DecisionAgent(model, policy, target=30.0), seed=3, steps=steps)
    assert episode.kept_fraction == pytest.approx(kept, abs=0.02)


def test_what_does_not_fit_is_named(model: DecisionTransformerModel) -> None:
    agent = DecisionAgent(model, Full(), target=1.0)
    with pytest.raises(ValueError, match=r"takes states \[5\], not \[4\]"):
        agent.act(torch.zeros(4))
    for _ in range(60):
        agent.act(torch.zeros(5))
    with pytest.raises(ValueError, match="knows 60 time steps"):
        agent.act(torch.zeros(5))


@pytest.mark.fault("C20", siblings="a state or a reward of NaN, which every later action would have come from")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": float("nan")}, "target must be a finite return"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"scale": float("inf")}, "scale must be positive"),
        ({"mean": torch.zeros(5)}, "mean and deviation of the states together"),
        ({"mean": torch.zeros(4), "deviation": torch.ones(4)}, r"mean must be \[5\], got \[4\]"),
        ({"mean": torch.zeros(5), "deviation": torch.tensor([1.0, 1, 0, 1, 1])}, "deviation must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    model: DecisionTransformerModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionAgent(model, Full(), **{"target": 1.0, **settings})


def test_what_an_environment_gives_must_be_finite(model: DecisionTransformerModel) -> None:
    agent = DecisionAgent(model, Full(), target=1.0)
    with pytest.raises(ValueError, match="step 0: the environment gave a state or a reward that is NaN or infinite"):
        agent.act(torch.full((5,), torch.nan))
    with pytest.raises(ValueError, match="step 0: the environment gave"):
        agent.act(torch.zeros(5), reward=float("inf"))
    with pytest.raises(ValueError, match="at least one step, not 0"):
        run_episode(Drift(), agent, steps=0)
    assert agent.act(torch.zeros(5)).isfinite().all(), "nothing was remembered of what was refused"


def test_another_kind_of_model_is_named(tiny: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="must be a DecisionTransformerModel, got LlamaForCausalLM"):
        DecisionAgent(tiny, Full(), target=1.0)  # type: ignore[arg-type]
