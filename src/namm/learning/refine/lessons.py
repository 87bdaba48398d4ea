"""What a memory's decisions about a passage were worth: it is read under the memory and under the full cache."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.cache import layer_kinds
from namm.learning.passages import Passage
from namm.learning.refine.rollout import IMPLEMENTATION, Decision, Rollout
from namm.memory import NAMM
from namm.memory.spectrogram import AGE_FEATURES, NORM_FLOOR

QUESTIONS = 5  # asked of a passage
QUOTE, CUE = 80, 16  # tokens of the passage to be quoted after it, and those of them that are given
SHARE = 0.4  # of the heads at each update is learned from
SINK = 0.02  # mean attention from which on a token should stay: the credit of what attention rests on is noise
SHARES = 5  # times an equal share of attention, where heads hold so few tokens that this is more


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
class Lesson:
    """One head at one update.

    Attributes:
        features: ``[tokens, features]`` float16.
        scores: ``[tokens]``, as the decision was made by.
        worth: ``[tokens]``, nats that a token's place saved, a block; the newest, which stays anyway, teaches nothing.
        sinks: ``[tokens]`` bool, see `SINK`.
    """

    features: Tensor
    scores: Tensor
    worth: Tensor
    sinks: Tensor


@dataclass(frozen=True)
class Reading:
    """What one passage found: divergences from the full cache, nats a token, and the fraction kept."""

    passage: float
    recall: float
    kept: float


def make_exam(passage: Passage, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Exam:
    """Ask for some of a passage's facts, and quote some of it."""
    tokens = passage.ids.shape[1]

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    asked = rng.sample(passage.facts, min(QUESTIONS, len(passage.facts)))
    parts = [(encode("\n\n" + fact.question), encode(fact.answer)) for fact in asked]
    begin = rng.randrange(1, max(2, tokens - QUOTE))  # a text may begin with a token of its own
    quote: list[int] = passage.ids[0, begin : begin + QUOTE].tolist()
    parts.insert(rng.randint(0, len(parts)), (encode("\n\n") + quote[:CUE], quote[CUE:]))
    ids: list[int] = passage.ids[0].tolist()
    recalled: list[int] = []
    for given, wanted in parts:
        ids += given
        recalled += range(len(ids), len(ids) + len(wanted))
        ids += wanted
    return Exam(torch.tensor([ids]), tokens, recalled)


def examine(
    model: PreTrainedModel,
    memory: NAMM,
    exam: Exam,
    fraction: float,
    *,
    scored: int,
    recall: float,
    rng: random.Random,
) -> tuple[list[Lesson], Reading]:
    """Read a passage under the memory and under the full cache, and find what the memory's decisions were worth.

    The model's parameters must not require gradients.

    Args:
        fraction: aimed at. scored, recall: see `RefineConfig`.
    """
    model.set_attn_implementation(IMPLEMENTATION)
    ids, interval = exam.ids.to(model.device), memory.config.update_interval
    inside = sorted(rng.sample(range(interval, exam.passage), min(scored, exam.passage - interval)))
    before = torch.tensor(inside + exam.recalled, device=model.device) - 1
    with torch.no_grad():
        wanted = model(ids, use_cache=False, logits_to_keep=before).logits[0].float().log_softmax(-1)
    types, _ = layer_kinds(model.config, type(model).__name__)
    rollout = Rollout(
        memory,
        [memory.offset_for(fraction, interval * (block + 1)) for block in range(ids.shape[1] // interval)],
        frozenset(index for index, kind in enumerate(types) if kind == "full_attention"),
    )
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=before, rollout=rollout).logits[0]
    divergence = (wanted.exp() * (wanted - logits.float().log_softmax(-1))).sum(-1)
    passage, recalled = divergence[: len(inside)].mean(), divergence[len(inside) :].mean()
    # a sum over blocks, as the answers are: a place is worth the same in passages of any length
    ((exam.passage / interval - 1) * passage + recall * recalled).backward()
    lessons = [
        lesson
        for decision in rollout.decisions
        if decision.block < exam.passage // interval - 1  # after the last, only what is recalled would count
        for lesson in lessons_of(memory, decision)
        if rng.random() < SHARE
    ]
    return lessons, Reading(passage.item(), recalled.item(), rollout.kept)


def lessons_of(memory: NAMM, decision: Decision) -> list[Lesson]:
    """A decision's heads as lessons, once the backward pass has filled in its credit."""
    assert decision.credit is not None and decision.blocks is not None
    found = []
    for head, tokens in enumerate(decision.tokens):
        real = tokens >= 0
        worth = -(decision.credit[head] / decision.blocks[head].clamp_min(1))[real]
        features = decision.features[head][real].cpu()
        sinks = attention_received(memory, features) > max(SINK, SHARES / len(features))
        found.append(Lesson(features.half(), decision.scores[head][real].cpu(), worth.cpu(), sinks))
    return found


def attention_received(memory: NAMM, features: Tensor) -> Tensor:
    """``[tokens]``, mean over queries, as the fastest moving average of the features knows it.

    Bin 0 of a frame is the sum of attention under the window, and a periodic Hann window sums to half its length.
    """
    config = memory.config
    first = min(range(len(config.ema)), key=lambda average: config.ema[average]) * config.spectrogram.bins
    magnitude = features[:, AGE_FEATURES + first]
    if config.normalised:
        magnitude = magnitude * memory.variance[first].sqrt().clamp_min(NORM_FLOOR) + memory.mean[first]
    return (magnitude.exp() if config.compression == "log" else magnitude) / (config.window / 2)
