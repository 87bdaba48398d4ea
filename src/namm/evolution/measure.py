"""Scores of candidates, each measured once and written down: the journal is what a run resumes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from namm.evolution.config import EvolveConfig
from namm.evolution.fitness import Result, Score, Work
from namm.evolution.objective import NATS, RUNNING_TEXT
from namm.evolution.samples import Drawn
from namm.evolution.workers import Map
from namm.memory import NAMM
from namm.support.journal import Journal


@dataclass(frozen=True)
class Measure:
    """Scores candidates on samples.

    Attributes:
        config: see `EvolveConfig`.
        start: of the run, with whose loss of running text that of candidates is compared.
        map: scores samples, see `workers`.
        journal: of the run.
        progress: called after each sample with (label, done, all).
    """

    config: EvolveConfig
    start: NAMM
    map: Map
    journal: Journal
    progress: Callable[[str, int, int], None]

    def results(self, label: str, drawn: Sequence[Drawn], flats: Tensor, *, spared: bool = False) -> list[list[Result]]:
        """Of each candidate its results on the samples, without those that compare nothing.

        Args:
            label: of the draw; samples are known in the journal by it and their own keys.
            flats: ``[candidates, parameters]`` float32.
            spared: it does not end the run that all of several candidates fail on a sample.

        Raises:
            ValueError: if they do; such a sample is not written down: what failed for want of memory may be tried
                again.
        """
        works = [self._work(f"{label} {one.key}", one, flats) for one in drawn]
        missing = [work for work in works if work.key not in self.journal.rows]
        done = len(works) - len(missing)
        self.progress(label, done, len(works))
        for key, scores in self.map(missing) if missing else ():
            judged = scores[-len(flats) :] if scores else []
            if len(judged) > 1 and not spared and not any(math.isfinite(score.value) for score in judged):
                raise failure(label, judged)
            self.journal.add(key, {"scores": _pack(scores)})
            done += 1
            self.progress(label, done, len(works))
        found: list[list[Result]] = [[] for _ in flats]
        for work, one in zip(works, drawn, strict=True):
            scores = _unpack(self.journal.rows[work.key]["scores"])
            if scores is None:
                continue
            start = scores[0] if len(scores) > len(flats) else None
            for own, score in zip(found, scores[-len(flats) :], strict=True):
                own.append(Result(one.model, one.task, score, start))
        return found

    def _work(self, key: str, one: Drawn, flats: Tensor) -> Work:
        """The sample for all candidates, on running text with the start before them."""
        config = self.config
        if config.metric == NATS and one.task == RUNNING_TEXT:
            flats = torch.cat([self.start.flat[None], flats])
        return Work(key, one.model, one.sample, config.metric, flats, config.share(self.start))


def failure(label: str, scores: Iterable[Score]) -> ValueError:
    """That all candidates failed, with what most of them failed of."""
    reasons = Counter(score.error for score in scores if score.error)
    reason = reasons.most_common(1)[0][0] if reasons else "no reason is known"
    return ValueError(
        f"{label}: all candidates failed ({reason}): try a smaller sigma or population, shorter texts or float32"
    )


def _pack(scores: Iterable[Score] | None) -> list[list[float | str | None]] | None:
    """JSON has no infinity: a failed candidate's value is null."""
    if scores is None:
        return None
    return [[s.value if math.isfinite(s.value) else None, s.kept, s.error] for s in scores]


def _unpack(rows: list[list[float | str | None]] | None) -> list[Score] | None:
    if rows is None:
        return None
    return [Score(-math.inf if value is None else float(value), float(kept or 0), str(e)) for value, kept, e in rows]
