"""What candidates are worth on one sample, relative to the full cache of the same model, and on many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.evolution.config import EvolveConfig
from namm.evolution.objective import HIGHEST, LOWEST, NATS, RUNNING_TEXT, STEEP
from namm.evolution.reading import SharedReading
from namm.memory import NAMM
from namm.policies import Full, NAMMPolicy
from namm.tasks import Sample
from namm.tasks.answering import Reading, padding_token
from namm.tasks.metrics import LIKELIHOOD, METRICS


@dataclass(frozen=True)
class Score:
    """Of one candidate on one sample.

    Attributes:
        value: for `NATS` the mean log-probability of the answer's tokens less the full cache's, between `LOWEST` and
            `HIGHEST`; for `LIKELIHOOD` exp of that difference; else the metric of the generated answer over the full
            cache's. Minus infinity: failed.
        kept: fraction kept when the question came.
        error: why the candidate failed.
    """

    value: float
    kept: float
    error: str = ""


@dataclass(frozen=True)
class Work:
    """One sample to be scored for several candidates; what is sent to workers.

    Attributes:
        key: of the result in the journal.
        model: its name.
        sample: what to recall.
        metric: `NATS`, `LIKELIHOOD` or of `METRICS`.
        flats: ``[candidates, parameters]`` float32.
        kept: fraction that every candidate keeps, so that scores count relative to one another; None: a candidate keeps
            what it scores at least 0, as in the paper.
    """

    key: str
    model: str
    sample: Sample
    metric: str
    flats: Tensor
    kept: float | None = None


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: NAMM, work: Work) -> list[Score] | None:
    """Scores of all candidates; None where the full cache itself scores nothing, so that nothing can be compared.

    The context is read once until a token may have to go, and from there on by every candidate for itself, so that
    none sees of the others that they fail.
    """
    context, question, answer = (ids[0] for ids in work.sample.token_ids(tokenizer))
    shared = SharedReading.of(model, context, memory, work.kept, padding_token(tokenizer))
    length = len(answer) + (work.metric == "exact")  # which depends on what comes after the answer

    def value(reading: Reading) -> float:
        if work.metric in (NATS, LIKELIHOOD):
            return float(reading.score(question, answer)[0].mean())
        text = str(tokenizer.decode(reading.generate([question], length)[0], skip_special_tokens=True))
        return METRICS[work.metric](text, [work.sample.answer], ())

    full = value(shared.under(Full()))
    if work.metric in METRICS and full <= 0:
        return None

    def of_candidate(flat: Tensor) -> Score:
        try:
            reading = shared.under(NAMMPolicy(replace(memory, flat=flat), kept=work.kept))
            found = relative(value(reading), full, work.metric)
        except (RuntimeError, MemoryError, ValueError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            return Score(-math.inf, 1.0, str(error))
        kept = reading.stats.kept_fraction
        return Score(found, kept) if math.isfinite(found) else Score(-math.inf, kept, "the model gave NaN")

    return [of_candidate(flat) for flat in work.flats]


def relative(value: float, full: float, metric: str) -> float:
    """A candidate's value set against the full cache's, see `Score`; NaN stays NaN."""
    if metric == NATS:
        return value - full if math.isnan(value - full) else min(HIGHEST, max(LOWEST, value - full))
    return math.exp(value - full) if metric == LIKELIHOOD else value / full


@dataclass(frozen=True)
class Result:
    """What one sample says of one candidate.

    Attributes:
        model: that was asked.
        task: of the sample.
        score: the candidate's.
        start: the start's, where it was asked too.
    """

    model: str
    task: str
    score: Score
    start: Score | None = None


def fitness(results: Sequence[Result], config: EvolveConfig) -> float:
    """Of one candidate: the mean over models of the mean over tasks of the mean over samples, less what is charged.

    Charged is `price` for each unit kept above `kept`, and in nats what running text loses, see `excess`. Minus
    infinity where one sample failed.
    """
    if not all(math.isfinite(one.score.value) for one in results):
        return -math.inf
    by_model = _by(results, lambda one: one.model)
    value = mean(
        mean(mean(one.score.value for one in own) for own in _by(asked, lambda one: one.task)) for asked in by_model
    )
    kept = mean(one.score.kept for one in results)
    charged = config.price * max(0.0, kept - config.kept)
    if config.metric == NATS:
        charged += STEEP * mean(max(0.0, excess(asked) - config.tolerance) for asked in by_model)
    return value - charged


def excess(results: Iterable[Result]) -> float:
    """By how much the loss of running text rises more under a candidate than under the start, nats a token.

    0 where no running text was asked, or the start failed on it.
    """
    found = [one.start.value - one.score.value for one in results if one.task == RUNNING_TEXT and one.start is not None]
    return mean(found) if found and all(map(math.isfinite, found)) else 0.0


def _by(results: Iterable[Result], name: Callable[[Result], str]) -> list[list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        groups[name(one)].append(one)
    return list(groups.values())
