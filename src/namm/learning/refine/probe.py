"""What a memory's decisions about a passage saved: it is read under the memory and under the full cache."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.learning.passages import Passage
from namm.learning.refine.rollout import Decision, RolloutCache, RolloutPolicy, frozen, read_thresholds
from namm.memory import NAMM
from namm.tasks.encode import encode

QUESTIONS = 5  # asked of a passage
QUOTE, CUE = 80, 16  # tokens of the passage to be quoted after it, and those of them that are given
HEADS = 32  # at each update become examples, about so many: a model of few heads must not teach by a handful
SINK = 0.02  # mean attention from which on a token should stay: the credit of what attention rests on is noise
SHARES = 5  # times an equal share of attention, where heads hold so few tokens that this is more


@dataclass(frozen=True)
class Probe:
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
class Example:
    """One head at one update.

    Attributes:
        observed: ``[tokens, config.observed]`` float16, see `namm.memory.features.observed`.
        ages: ``[tokens]`` integers, 0 for the newest.
        scores: ``[tokens]``, as the decision was made by.
        gain: ``[tokens]``, nats a block that having the token saved or would have saved.
        sinks: ``[tokens]`` bool, see `SINK`.
    """

    observed: Tensor
    ages: Tensor
    scores: Tensor
    gain: Tensor
    sinks: Tensor


@dataclass(frozen=True)
class Reading:
    """How one passage was read: divergences from the full cache, nats a token, and the fraction kept."""

    passage: float
    recall: float
    kept: float


def make_probe(passage: Passage, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Probe:
    """Ask for some of a passage's facts, and quote some of it from anywhere."""

    def tokens(text: str) -> list[int]:
        found: list[int] = encode(tokenizer, text, begins=False)[0].tolist()
        return found

    ids: list[int] = passage.ids[0].tolist()
    asked = rng.sample(passage.facts, min(QUESTIONS, len(passage.facts)))
    parts = [(tokens("\n\n" + fact.question), tokens(fact.answer)) for fact in asked]
    begin = rng.randrange(1, max(2, len(ids) - QUOTE))  # a text may begin with a token of its own
    quote = ids[begin : begin + QUOTE]
    parts.insert(rng.randint(0, len(parts)), (tokens("\n\n") + quote[:CUE], quote[CUE:]))
    recalled: list[int] = []
    for given, wanted in parts:
        ids += given
        recalled += range(len(ids), len(ids) + len(wanted))
        ids += wanted
    return Probe(torch.tensor([ids]), passage.ids.shape[1], recalled)


def run_probe(
    model: PreTrainedModel,
    memory: NAMM,
    probe: Probe,
    kept: float,
    *,
    scored: int,
    recall: float,
    rng: random.Random,
) -> tuple[list[Example], Reading]:
    """Read a passage under the memory and under the full cache, and find what the memory's decisions saved.

    Args:
        kept: fraction, mean over layers. scored, recall: see `RefineConfig`.
    """
    ids, interval = probe.ids.to(model.device), memory.config.update_interval
    inside = sorted(rng.sample(range(interval, probe.passage), min(scored, probe.passage - interval)))
    before = torch.tensor(inside + probe.recalled, device=model.device) - 1
    with torch.no_grad():
        wanted = model(ids, use_cache=False, logits_to_keep=before).logits[0].float().log_softmax(-1)
    thresholds = read_thresholds(model, memory, ids[:, : probe.passage], kept)
    policy = RolloutPolicy(memory, kept=kept, thresholds=thresholds)
    with frozen(model):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        cache = RolloutCache(model, policy)
        found = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=before).logits[0]
        divergence = (wanted.exp() * (wanted - found.float().log_softmax(-1))).sum(-1)
        passage, recalled = divergence[: len(inside)].mean(), divergence[len(inside) :].mean()
        # a sum over blocks, as the answers are: a token counts the same in passages of any length
        ((probe.passage / interval - 1) * passage + recall * recalled).backward()
    share = HEADS / sum(decision.block == 0 for decision in policy.decisions)
    examples = [
        example_of(memory, decision)
        for decision in policy.decisions
        if decision.block < probe.passage // interval - 1  # after the last, only what is recalled would count
        if rng.random() < share
    ]
    return examples, Reading(passage.item(), recalled.item(), policy.kept_fraction())


def example_of(memory: NAMM, decision: Decision) -> Example:
    """A decision as an example, once the backward pass has filled in its credit."""
    assert decision.credit is not None and decision.blocks is not None
    gain = -decision.credit / decision.blocks.clamp_min(1)
    observed, positions = decision.observed.cpu(), decision.positions.cpu()
    sinks = attention_received(memory, observed) > max(SINK, SHARES / len(observed))
    return Example(observed.half(), positions[-1] - positions, decision.scores.cpu(), gain.cpu(), sinks)


def attention_received(memory: NAMM, observed: Tensor) -> Tensor:
    """``[tokens]``, mean over queries, as the fastest moving average knows it.

    Bin 0 of a frame is the sum of attention under the window, and a periodic Hann window sums to half its length.

    Args:
        observed: ``[tokens, config.observed]``, see `namm.memory.features.observed`.

    Raises:
        ValueError: for a memory whose first band is more than bin 0.
    """
    config = memory.config
    if config.bands and config.bands[0] != (0, 0):
        raise ValueError(f"the first band must be bin 0 alone, the mean attention, not {config.bands[0]}")
    first = min(range(len(config.ema)), key=lambda average: config.ema[average]) * config.spectrogram.channels
    magnitude = observed[:, first]
    return (magnitude.exp() if config.compression == "log" else magnitude) / (config.window / 2)
