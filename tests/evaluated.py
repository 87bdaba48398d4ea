"""Rows of an evaluation, made up."""

from __future__ import annotations


def row(policy: str, aim: float, sample: str, score: float, kept: float, task: str = "a") -> dict:
    place = {"depth": 0.5, "length": 10.0} if task == "a" else {}
    held = {"held": kept + 0.1, "seconds": 1.0, "place": place}
    return {
        "model": "m",
        "task": task,
        "policy": policy,
        "aim": aim,
        "sample": sample,
        "score": score,
        "kept": kept,
    } | held


ROWS = [
    row("full", 0.5, "0", 0.8, 1.0),
    row("full", 0.5, "1", 0.4, 1.0),
    row("h2o", 0.5, "0", 0.4, 0.5),
    row("h2o", 0.5, "1", 0.2, 0.5),
    row("full", 0.5, "0", 0.5, 1.0, "b"),
    row("h2o", 0.5, "0", 0.5, 0.5, "b"),
]
