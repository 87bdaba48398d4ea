"""What no other test of evaluating would notice; each of these catches a mutation of `mutants.py`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from namm import NAMM, NAMMConfig
from namm.evaluation import compare
from namm.evaluation.table import lines


def row(task: str, sample: str, policy: str, score: float) -> dict[str, Any]:
    aim = 1.0 if policy == "full" else 0.25
    costs = {"kept": aim, "held": aim, "seconds": 1.0}
    return {"model": "m", "task": task, "sample": sample, "policy": policy, "aim": aim, "score": score, **costs}


def test_a_score_is_set_against_the_full_cache_on_the_same_samples() -> None:
    rows = [row("a", "1", "full", 0.5), row("a", "2", "full", 1.0), row("a", "1", "namm", 0.4)]
    relative = {line.policy: line.relative for line in lines(rows)}
    assert relative == {"full": 1.0, "namm": pytest.approx(0.4 / 0.5)}
    unmatched = [row("a", "1", "full", 0.5), row("a", "1", "namm", 0.4), row("a", "3", "namm", 0.4)]
    assert math.isnan(lines(unmatched)[1].relative)


def test_an_average_leaves_out_tasks_without_a_full_cache() -> None:
    rows = [row("a", "1", "full", 0.5), row("a", "1", "namm", 0.4), row("b", "1", "namm", 0.3)]
    found = {(line.task, line.policy): line for line in lines(rows)}
    assert math.isnan(found["b", "namm"].relative)
    average = found["average", "namm"]
    assert average.relative == pytest.approx(0.8) and average.score == pytest.approx(0.35)


def test_every_policy_is_compared_with_the_full_cache(tiny: PreTrainedModel, ids: torch.Tensor) -> None:
    found = list(compare(tiny, ids, NAMM(NAMMConfig(update_interval=64)), tail=40))
    assert found[0].policy == "full" and len(found) > 3
    assert [row.rise for row in found] == [row.tail.loss - found[0].tail.loss for row in found]
