"""A Decision Transformer (arXiv 2106.01345) that acts step by step and remembers in a `MemoryCache`.

transformers' `DecisionTransformerModel` takes a whole trajectory at every call and leaves a cache unused; here only
what is new goes in, and what went before lives in the cache, or is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from namm.cache import MemoryCache
from namm.memory import NAMM
from namm.policies import Policy

if TYPE_CHECKING:
    from transformers import DecisionTransformerModel


@dataclass
class DecisionAgent:
    """Asks a model for one action after another.

    Attributes:
        model: in evaluation mode. It learned on windows of some steps; what it does with more is another matter.
        policy: what is remembered; three tokens are added a step (action before, return to go, state).
        target: the return to ask for, in the environment's rewards.
        scale: what returns are divided by, as in training.
        mean: of the states in training, ``[state_dim]``; None: states go in as they are.
        deviation: likewise, given together with `mean`.
        cache: of the episode so far.
    """

    model: DecisionTransformerModel
    policy: Policy | NAMM
    target: float
    scale: float = 1000.0
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for settings that mean nothing."""
        if not hasattr(self.model, "encoder") or not hasattr(self.model.config, "state_dim"):
            raise TypeError(f"model must be a DecisionTransformerModel, got {type(self.model).__name__}")
        if not math.isfinite(self.target):
            raise ValueError(f"target must be a finite return, got {self.target}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be positive, got {self.scale}")
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("give mean and deviation of the states together, or neither")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if values is not None and values.shape != (self.model.config.state_dim,):
                raise ValueError(f"{name} must be [{self.model.config.state_dim}], got {list(values.shape)}")
        if self.deviation is not None and not bool((self.deviation > 0).all()):
            raise ValueError("deviation must be positive everywhere: leave out states that never change, or give 1")
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.cache = MemoryCache(self.model.encoder, self.policy)
        self._step, self._to_go = 0, self.target
        self._action: Tensor | None = None

    @torch.inference_mode()
    def act(self, state: Any, reward: float = 0.0) -> Tensor:
        """The next action, ``[act_dim]`` float32.

        Args:
            state: ``[state_dim]`` numbers as the environment gives them.
            reward: for the action before.

        Raises:
            ValueError: for a state of another size, a state or reward that is NaN or infinite, or an episode longer
                than the model has time steps.
        """
        model = self.model
        config, device = model.config, model.device
        state = torch.as_tensor(state, dtype=model.dtype, device=device)
        if state.shape != (config.state_dim,):
            raise ValueError(f"the model takes states [{config.state_dim}], not {list(state.shape)}")
        if not bool(state.isfinite().all()) or not math.isfinite(reward):
            raise ValueError(f"step {self._step}: the environment gave a state or a reward that is NaN or infinite")
        if self._step >= config.max_ep_len:
            raise ValueError(f"the model knows {config.max_ep_len} time steps, and this episode is longer: reset()")
        if self.mean is not None and self.deviation is not None:
            state = (state - self.mean.to(state)) / self.deviation.to(state)
        self._to_go -= reward
        to_go = torch.tensor([self._to_go / self.scale], dtype=model.dtype, device=device)
        embedded = [
            model.embed_return(to_go) + self._time(self._step),
            model.embed_state(state) + self._time(self._step),
        ]
        if self._action is not None:
            embedded.insert(0, model.embed_action(self._action) + self._time(self._step - 1))
        # times are in the embeddings: the encoder's own positions are all 0
        hidden = model.encoder(
            inputs_embeds=model.embed_ln(torch.stack(embedded))[None],
            position_ids=torch.zeros(1, len(embedded), dtype=torch.long, device=device),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        action: Tensor = model.predict_action(hidden[0, -1])
        self._action = action
        self._step += 1
        return action.float().cpu()

    def _time(self, step: int) -> Tensor:
        return self.model.embed_timestep(torch.tensor(step, device=self.model.device))


@dataclass(frozen=True)
class Episode:
    """What came of one episode: the sum of its rewards, its steps, and the fraction of tokens kept at its end.

    The tokens since the last decision are decided on at the end (`MemoryCache.settle`), so that budgets hold for all.
    """

    reward: float
    steps: int
    kept_fraction: float


def run_episode(
    environment: Any, agent: DecisionAgent, *, seed: int | None = None, steps: int | None = None
) -> Episode:
    """One episode of a Gymnasium environment with continuous actions, until it ends or so many steps are done.

    Raises:
        ValueError: for steps below 1; see also `DecisionAgent.act`.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"an episode has at least one step, not {steps}")
    agent.reset()
    state, _ = environment.reset(seed=seed)
    total, reward, done, count = 0.0, 0.0, False, 0
    while not done and count != steps:
        action = agent.act(state, reward).numpy()
        state, reward, terminated, truncated, _ = environment.step(action)
        total, count, done = total + float(reward), count + 1, terminated or truncated
    agent.cache.settle()
    return Episode(total, count, agent.cache.stats().kept_fraction)
