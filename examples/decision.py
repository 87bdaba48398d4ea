"""A Decision Transformer on MuJoCo under a memory made on text: a robot forgets some of what it has been through.

    python examples/decision.py train OUT       # data from an actor found here, then the Decision Transformer
    python examples/decision.py evaluate OUT    # return by what is kept, and what is dropped
    python examples/decision.py evaluate OUT --model edbeeching/decision-transformer-gym-hopper-medium \\
        --environment Hopper-v5 --statistics hopper.json    # published weights, where there is a hub

The statistics of published weights (``{"mean": [...], "deviation": [...], "target": 3600, "window": 20}``) are on their
cards. Those weights learned on short windows, and so know no full cache of an episode; what is trained here knows both.
Needs the extra `decision`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from actor import collect, make_world
from fitting import RULES, apart, counted, digest, fit, furthest
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

import namm
from namm.decision import DecisionAgent, run_episode
from namm.evaluation import mean_interval
from namm.policies import Streaming
from namm.policies.names import make_policy
from namm.support.journal import Journal, Row
from namm.support.plotting import pyplot

SCALE = 1000.0  # of returns
KINDS = ("action", "return to go", "state")
PARTS = 40  # of an episode, in the picture


def train(arguments: argparse.Namespace) -> None:
    data = collect(arguments.output, arguments.environment, arguments.rounds)
    lasts = np.flatnonzero(data["ends"])
    firsts = np.r_[0, lasts[:-1] + 1]
    returns = np.array([data["rewards"][first : last + 1].sum() for first, last in zip(firsts, lasts, strict=True)])
    print(f"{len(returns)} episodes; return {returns[0]:.0f} at first, {returns.max():.0f} at best")
    mean, deviation = data["states"].mean(0), data["states"].std(0) + 1e-6
    to_go = data["rewards"].astype(np.float64)
    for first, last in zip(firsts, lasts, strict=True):
        to_go[first : last + 1] = to_go[first : last + 1][::-1].cumsum()[::-1]
    states = torch.from_numpy((data["states"] - mean) / deviation)
    actions, meant = torch.from_numpy(data["actions"]), torch.from_numpy(data["meant"])
    aims = torch.from_numpy(to_go / SCALE).float()
    lengths = lasts - firsts + 1
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=states.shape[1],
        act_dim=actions.shape[1],
        hidden_size=128,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        max_ep_len=gymnasium.spec(arguments.environment).max_episode_steps,
    )
    model = DecisionTransformerModel(config)

    def loss_at(update: int) -> Tensor:
        random, window = np.random.default_rng(update), arguments.window
        if update % 2:  # on longer pieces, up to whole episodes, so that a full cache is nothing new
            window = int(window * (max(window, lengths.max()) / window) ** random.random())
        count = max(1, 16 * arguments.window // window)
        episodes = random.choice(len(lengths), count, p=lengths / lengths.sum())
        begin = (random.random(count) * np.maximum(1, lengths[episodes] - window + 1)).astype(int)
        steps = begin[:, None] + np.arange(window)
        real = torch.from_numpy(steps < lengths[episodes][:, None])
        at = torch.from_numpy(np.minimum(firsts[episodes][:, None] + steps, len(states) - 1))
        found = model(
            states=states[at],
            actions=actions[at],
            returns_to_go=aims[at][..., None],
            timesteps=torch.from_numpy(steps).clamp(max=config.max_ep_len - 1),
            attention_mask=real.long(),
        )
        return torch.nn.functional.mse_loss(found.action_preds[real], meant[at][real])

    fit(model, loss_at, arguments.updates, arguments.output / "training.pt", rate=5e-4)
    model.save_pretrained(arguments.output / "model")
    statistics = {"mean": mean.tolist(), "deviation": deviation.tolist(), "target": float(returns.max())}
    statistics |= {"environment": arguments.environment, "window": arguments.window}
    (arguments.output / "statistics.json").write_text(json.dumps(statistics))


def flail(world: gymnasium.Env, seed: int) -> Row:
    """An episode of random actions: what a model must beat."""
    world.reset(seed=seed)
    world.action_space.seed(seed)
    total, steps, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, _ = world.step(world.action_space.sample())
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    return {"return": total, "kept": 0.0, "steps": steps}


def live(model: DecisionTransformerModel, policy: Any, known: dict, environment: str, seed: int) -> Row:
    """One episode, and the share of layers and heads that hold its tokens at the end, by kind and part.

    Without a policy, actions are random.
    """
    world = make_world(environment)
    if policy is None:
        return flail(world, seed)
    mean, deviation = torch.tensor(known["mean"]), torch.tensor(known["deviation"])
    agent = DecisionAgent(model, policy, known["target"], SCALE, mean, deviation)
    episode = run_episode(world, agent, seed=seed)
    world.close()
    tokens = 3 * episode.steps - 1  # the first step has no action before it
    held = np.zeros(tokens)
    rows = [head.numpy() for layer in agent.cache.positions() for head in layer[0]]
    for positions in rows:
        held[positions] += 1 / len(rows)
    kinds = [held[2::3], held[0::3], held[1::3]]  # action, return to go, state; an episode begins with a return
    shares = [[float(part.mean()) for part in _parts(own)] for own in kinds]
    return {"return": episode.reward, "kept": episode.kept_fraction, "steps": episode.steps, "held": shares}


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """`PARTS` equal parts, at least a value each."""
    bounds = np.arange(PARTS + 1) * len(values) // PARTS
    return [values[first : max(first + 1, last)] for first, last in zip(bounds, bounds[1:], strict=False)]


def evaluate(arguments: argparse.Namespace) -> None:
    known = json.loads((arguments.statistics or arguments.output / "statistics.json").read_text())
    environment = known.get("environment", arguments.environment)
    model = DecisionTransformerModel.from_pretrained(arguments.model or arguments.output / "model").eval()
    memory = namm.NAMM.from_pretrained(arguments.memory)
    journal = Journal(arguments.output / "episodes.jsonl")
    acting, remembering = digest(model.parameters(), known), digest([memory.flat], memory.config)

    def run(title: str, policy: Any) -> list[Row]:
        by = remembering if title.startswith("namm") else memory.config.update_interval
        key = f"{acting} {environment} {title} {by}"
        seeds = counted(range(arguments.episodes), title)
        return [
            journal.get(f"{key} {seed}", lambda seed=seed: live(model, policy, known, environment, seed))
            for seed in seeds
        ]

    settings = {"random actions": run("random actions", None), "full": run("full", make_policy("full", None, memory))}
    if "window" in known:
        title = f"streaming, {known['window']} steps"
        settings[title] = run(title, Streaming(3 * known["window"], update_interval=memory.config.update_interval))
    aims, owns = dict[str, float](), dict[str, str]()
    for aim in arguments.kept:
        title = f"namm, aimed at {aim:g}"
        own, aims[title] = run(title, make_policy("namm", aim, memory)), aim
        settings[title] = own
        kept = round(float(np.mean([row["kept"] for row in own])), 3)
        for rule in arguments.rules:
            other = f"{rule}, {kept:g}"
            settings[other], aims[other], owns[other] = run(other, make_policy(rule, kept, memory)), kept, title

    show(
        f"{environment}, {arguments.episodes} episodes a policy; asked for {known['target']:.0f}", settings, aims, owns
    )
    draw({title: rows for title, rows in settings.items() if title.startswith("namm")}, arguments.output / "held.png")


def show(title: str, settings: dict[str, list[Row]], aims: dict[str, float], owns: dict[str, str]) -> None:
    """Returns by policy; beside those with an aim how far an episode's fraction kept was from it at most."""
    table = Table(title=title)
    for heading in ("policy", "kept", "furthest", "return", "less namm", "steps"):
        table.add_column(heading, justify="right" if heading != "policy" else "left")
    for name, rows in settings.items():
        mean, half = mean_interval([row["return"] for row in rows])
        kept, steps = (np.mean([row[field] for row in rows]) for field in ("kept", "steps"))
        miss = f"{furthest(rows, aims[name]):.3f}" if name in aims else ""
        less = apart(rows, settings[owns[name]], "return", ".0f") if name in owns else ""
        table.add_row(name, f"{kept:.3f}", miss, f"{mean:.0f} ± {half:.0f}", less, f"{steps:.0f}")
    Console(width=110).print(table)


def draw(settings: dict[str, list[Row]], path: Path) -> None:
    """For each setting what is still held at the end of an episode, by kind of token and part of the episode."""
    plots = pyplot()
    size = {"figsize": (8, 2.2 * len(settings)), "squeeze": False, "sharex": True, "layout": "constrained"}
    figure, panels = plots.subplots(len(settings), 1, **size)
    for panel, (title, rows) in zip(panels[:, 0], settings.items(), strict=True):
        shares = np.mean([row["held"] for row in rows], axis=0)
        for kind, share in zip(KINDS, shares, strict=True):
            panel.stairs(share, np.linspace(0, 1, PARTS + 1), label=kind)
        panel.set(title=title, xlim=(0, 1), ylim=(0, 1), ylabel="share held")
    panels[-1, 0].set_xlabel("part of the episode")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(KINDS))
    figure.savefig(path, dpi=150)
    plots.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "evaluate"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--environment", default="HalfCheetah-v5", help="of Gymnasium, with actions from -1 to 1")
    parser.add_argument("--rounds", type=int, default=80, help="of the search for an actor")
    parser.add_argument("--window", type=int, default=40, help="steps of the shortest pieces to learn on")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--model", help="a folder or hub id in place of what was trained in OUT")
    parser.add_argument("--statistics", type=Path, help="of that model's states, and its target")
    parser.add_argument("--memory", default="universal")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.5, 0.25, 0.125], help="fractions aimed at")
    parser.add_argument("--rules", nargs="*", default=RULES, help="hand-designed ones that keep as much")
    arguments = parser.parse_args()
    if arguments.action == "evaluate" and not (arguments.statistics or arguments.output / "statistics.json").exists():
        parser.error(f"{arguments.output} holds no trained model: train first, or give --model and --statistics")
    arguments.output.mkdir(parents=True, exist_ok=True)
    train(arguments) if arguments.action == "train" else evaluate(arguments)


if __name__ == "__main__":
    main()
