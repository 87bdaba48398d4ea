"""What a population is worth on one sample, relative to the full cache of the same model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.evolution.population import PopulationPolicy
from namm.memory import NAMM
from namm.policies import Full, Policy
from namm.tasks import Sample
from namm.tasks.answering import padding_token, read
from namm.tasks.metrics import LIKELIHOOD, METRICS


@dataclass(frozen=True)
class Score:
    """Of one member on one sample.

    Attributes:
        value: for `LIKELIHOOD` exp(mean log-probability of the answer's tokens minus the full cache's), else the metric
            of the generated answer over the full cache's. 1.0 is as good as the full cache; minus infinity: failed.
        kept: fraction kept when the question came.
        error: why the member failed.
    """

    value: float
    kept: float
    error: str = ""


@dataclass(frozen=True)
class Work:
    """One sample to be scored for a whole population; what is sent to workers.

    Attributes:
        key: of the result in the journal.
        sample: what to recall.
        metric: `LIKELIHOOD` or of `METRICS`.
        flats: ``[population, parameters]`` float32.
        kept: fraction that every member keeps, so that scores count relative to one another; None: a member keeps
            what it scores at least 0, as in the paper.
    """

    key: str
    sample: Sample
    metric: str
    flats: Tensor
    kept: float | None = None


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    work: Work,
    known: dict[bytes, float] | None = None,
) -> list[Score] | None:
    """Scores of all members; None where the full cache itself scores nothing, so that nothing can be compared.

    Args:
        known: what the full cache scored on samples so far; added to, since validation comes back to its samples. By
            digests: a long run draws far more text than it returns to.
    """
    known = {} if known is None else known
    context, question, answer = (ids[0] for ids in work.sample.token_ids(tokenizer))
    length = len(answer) + (work.metric == "exact")  # which depends on what comes after the answer

    def values(policy: Policy, rows: int) -> tuple[list[float], list[float]]:
        reading = read(model, [context], policy, rows=rows, pad=padding_token(tokenizer))
        kept = reading.stats.kept_fractions
        if work.metric == LIKELIHOOD:
            return reading.score(question, answer)[0].mean(1).tolist(), kept
        texts = (tokenizer.decode(row, skip_special_tokens=True) for row in reading.generate([question], length))
        return [METRICS[work.metric](str(text), [work.sample.answer], ()) for text in texts], kept

    key = hashlib.sha256(repr((work.sample, work.metric)).encode()).digest()
    if key not in known:
        known[key] = values(Full(), 1)[0][0]
    full = known[key]
    if work.metric != LIKELIHOOD and full <= 0:
        return None

    def of_members(flats: Tensor) -> list[Score]:
        try:
            policy = PopulationPolicy(replace(memory, flat=flats), kept=work.kept)
            found, kept = values(policy, len(flats))
        except (RuntimeError, MemoryError, ValueError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            if len(flats) == 1:
                return [Score(-math.inf, 1.0, str(error))]
            half = len(flats) // 2  # too many at once, or one that spoils the others
            return of_members(flats[:half]) + of_members(flats[half:])
        scores = []
        for member, (value, fraction) in enumerate(zip(found, kept, strict=True)):
            relative = math.exp(value - full) if work.metric == LIKELIHOOD else value / full
            broken = member in policy.failed or not math.isfinite(relative)
            scores.append(Score(-math.inf, fraction, "the network gave NaN") if broken else Score(relative, fraction))
        return scores

    return of_members(work.flats)


def fitness(scores: Sequence[Sequence[Score]], tasks: Sequence[str], kept: float, price: float) -> list[float]:
    """Of each member: mean over tasks of the mean over their samples, minus `price` for each unit kept above `kept`.

    Args:
        scores: ``[samples][population]``. tasks: the task of each sample.
    """
    names = sorted(set(tasks))
    found = []
    for member in zip(*scores, strict=True):
        by_task = [[s.value for s, task in zip(member, tasks, strict=True) if task == name] for name in names]
        value = sum(sum(values) / len(values) for values in by_task) / len(by_task)
        fraction = sum(s.kept for s in member) / len(member)
        found.append(value - price * max(0.0, fraction - kept))
    return found
