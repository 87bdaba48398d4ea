"""A memory made better by what its own decisions cost the model: credit from a backward pass, no attention targets.

`gated` gives the credit of every decision of a pass in which the memory forgets: how much smaller the divergence from
the full cache is with the token than without it. A token is worth its place where that exceeds the *price* of a place,
and the score is moved towards that verdict. The price is the one at which the verdicts of a pass, weighed by how close
the decisions were, leave the threshold where it is: the memory learns what to keep, not how much.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.cache import layer_kinds
from namm.distillation.gated import IMPLEMENTATION, Decision, Rollout
from namm.distillation.passages import Passage
from namm.distillation.train import save_atomically
from namm.memory import NAMM
from namm.network import token_scores, unflatten

QUESTIONS = 5  # asked of a passage
QUOTE, CUE = 80, 16  # tokens of the passage to be quoted after it, and those of them that are given
CHECKPOINT_EVERY = 10
WORST = 1000.0  # prices that a wrong decision counts for, at most


@dataclass(frozen=True)
class RefineConfig:
    """Adam with one learning-rate cycle, a passage a step.

    Attributes:
        steps: passes. learning_rate: its peak.
        fractions: aimed at in turn between these two, so that the memory serves all sizes.
        scored: tokens of a passage whose divergence is looked at.
        recall: weight of the divergence on answers and quotations (which most tokens do nothing for) beside that on the
            passage itself.
        width: of the scores in which a decision counts as close.
        anchor: how strongly scores are drawn back to those of the memory at the start, for one nat of difference beside
            one price of a place.
        seed: of everything random.
    """

    steps: int = 300
    learning_rate: float = 1e-3
    fractions: tuple[float, float] = (0.125, 0.5)
    scored: int = 384
    recall: float = 0.1
    width: float = 1.0
    anchor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.fractions
        if self.steps < 1 or self.learning_rate <= 0 or self.scored < 1 or self.width <= 0 or not 0 < low <= high < 1:
            raise ValueError(f"bad settings: {self}")


@dataclass(frozen=True)
class Exam:
    """A passage and what comes after it.

    Attributes:
        ids: ``[1, tokens]``, a passage of whole update intervals, then questions, answers and a quotation.
        passage: tokens of the passage.
        recalled: positions of answers and quoted tokens in `ids`.
    """

    ids: Tensor
    passage: int
    recalled: list[int]


@dataclass(frozen=True)
class Step:
    """What one pass found: divergences from the full cache, nats a token, and the fraction kept."""

    passage: float
    recall: float
    kept: float
    price: float


def make_exam(passage: Passage, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Exam:
    """Ask for some of a passage's facts, and quote some of it."""
    tokens = passage.ids.shape[1]

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    asked = rng.sample(passage.facts, min(QUESTIONS, len(passage.facts)))
    parts = [(encode("\n\n" + fact.question), encode(fact.answer)) for fact in asked]
    begin = rng.randrange(max(1, tokens - QUOTE))
    quote: list[int] = passage.ids[0, begin : begin + QUOTE].tolist()
    parts.insert(rng.randint(0, len(parts)), (encode("\n\n") + quote[:CUE], quote[CUE:]))
    ids, recalled = passage.ids[0].tolist(), []
    for given, wanted in parts:
        ids += given
        recalled += range(len(ids), len(ids) + len(wanted))
        ids += wanted
    return Exam(torch.tensor([ids]), tokens, recalled)


@torch.no_grad()
def _teach(model: PreTrainedModel, exam: Exam, scored: list[int]) -> Tensor:
    """Log-probabilities of the full cache before each scored token, ``[scored, vocabulary]``."""
    logits = model(exam.ids, use_cache=False, logits_to_keep=torch.tensor(scored) - 1).logits[0]
    return logits.float().log_softmax(-1)


def examine(
    model: PreTrainedModel, memory: NAMM, exam: Exam, fraction: float, settings: RefineConfig, rng: random.Random
) -> tuple[list[Decision], Step]:
    """One pass under the memory, and the credit of its decisions."""
    interval = memory.config.update_interval
    inside = sorted(rng.sample(range(interval, exam.passage), min(settings.scored, exam.passage - interval)))
    scored = inside + exam.recalled
    wanted = _teach(model, exam, scored)
    types, _ = layer_kinds(model.config, type(model).__name__)
    rollout = Rollout(
        memory,
        [memory.offset_for(fraction, interval * (block + 1)) for block in range(exam.ids.shape[1] // interval)],
        frozenset(index for index, kind in enumerate(types) if kind == "full_attention"),
    )
    embedded = model.get_input_embeddings()(exam.ids).detach().requires_grad_()
    logits = model(
        inputs_embeds=embedded, use_cache=False, logits_to_keep=torch.tensor(scored) - 1, rollout=rollout
    ).logits[0]
    divergence = (wanted.exp() * (wanted - logits.float().log_softmax(-1))).sum(-1)
    passage, recall = divergence[: len(inside)].mean(), divergence[len(inside) :].mean()
    (passage + settings.recall * recall).backward()
    return rollout.decisions, Step(passage.item(), recall.item(), rollout.kept, math.nan)


def verdicts(decisions: Sequence[Decision], width: float) -> tuple[list[Tensor], float]:
    """What to do with every score: gradients ``[heads, tokens]`` each, in prices of a place, and that price.

    Descent along ``closeness * (credit / price + 1)`` lowers the sum of ``kept * (credit + price)`` with the step of the
    threshold smoothed. The closeness ``1 / (1 + (s / width)^2)`` has long tails, for what a clear decision gets wrong (an
    attention sink dropped) may cost a thousand prices.
    """
    near, credits = [], []
    for decision in decisions:
        closeness = 1 / (1 + (decision.scores / width).square()) * (decision.tokens >= 0)
        closeness[:, -1] = 0  # the newest stays in any case
        near.append(closeness)
        credits.append(decision.credit)
    total = sum(float(closeness.sum()) for closeness in near)
    price = -sum(float((n * c).sum()) for n, c in zip(near, credits, strict=True)) / total
    if price <= 0:  # by chance, what was near the threshold did more harm than good: nothing to learn from
        return [torch.zeros_like(closeness) for closeness in near], price
    return [n * (c / price + 1).clamp(-WORST, WORST) for n, c in zip(near, credits, strict=True)], price


def refine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    passages: Sequence[Passage],
    settings: RefineConfig = RefineConfig(),
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, Step], None] = lambda step, found: None,
) -> NAMM:
    """The memory with parameters moved by the credit of its decisions; its calibration has to be made anew.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        memory: calibrated, see `calibrate`.
        passages: taken in turn, each of whole update intervals, at least two of them.
        checkpoint: where to save the state of training every so often, and to resume from.
        progress: called after each step with its number from 1.
    """
    model.set_attn_implementation(IMPLEMENTATION)
    model.requires_grad_(False)
    flat = memory.flat_parameters().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=settings.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1
    )
    done = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        done = state["step"]
        with torch.no_grad():
            flat.copy_(state["flat"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    low, high = (math.log(fraction) for fraction in settings.fractions)
    for step in range(done, settings.steps):
        rng = random.Random(f"{settings.seed} refine {step}")
        exam = make_exam(passages[step % len(passages)], tokenizer, rng)
        fraction = math.exp(rng.uniform(low, high))
        now = replace(memory, flat=flat.detach().clone())
        decisions, found = examine(model, now, exam, fraction, settings, rng)
        gradients, price = verdicts(decisions, settings.width)
        optimizer.zero_grad()
        for decision, gradient in zip(decisions, gradients, strict=True):
            weights = unflatten(flat, memory.config.features, memory.config.hidden)
            scores = token_scores(decision.features, weights, memory.config.heads)
            drift = scores.detach() - memory.scores(decision.features)
            scores.backward(gradient + settings.anchor * drift * (decision.tokens >= 0))
        norm = float(torch.nn.utils.clip_grad_norm_([flat], math.inf))
        if not math.isfinite(norm):
            raise ValueError(f"step {step}: the credit of its decisions is not finite; try float32")
        optimizer.step()
        schedule.step()
        progress(step + 1, replace(found, price=price))
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            state = {"flat": flat.detach(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            save_atomically(state | {"step": step + 1}, checkpoint)
    return replace(memory, flat=flat.detach())
