"""What the tests of refining share: a small memory and passages with facts."""

from __future__ import annotations

import random

import torch

from namm import NAMM, NAMMConfig
from namm.learning import Passage
from namm.tasks.facts import random_fact

CONFIG = NAMMConfig(
    update_interval=32,
    hidden=8,
    ema=(0.9, 0.99),
    compression="log",
)


def middling(offset: float = 0.0) -> NAMM:
    """A memory whose scores lie about 0 for a model with random weights."""
    memory = NAMM(CONFIG)
    memory.flat[-1] += offset
    return memory


def passages(count: int = 3, tokens: int = 96) -> list[Passage]:
    rng = random.Random(0)
    found = []
    for number in range(count):
        facts = [random_fact(rng) for _ in range(2)]
        text = (" ".join(fact.statement for fact in facts) + " the cat sat. " * 20)[:tokens]
        found.append(Passage(str(number), torch.tensor([list(text.encode())]), facts))
    return found
