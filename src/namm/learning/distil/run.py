"""From models and texts to a memory, resumable at every step."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from namm.learning.card import Teacher, card
from namm.learning.distil.record import Recording, record_document
from namm.learning.distil.regression import TrainConfig, centre, train
from namm.learning.passages import Passage, cut_evenly, deal, whole_intervals
from namm.learning.stored import stored
from namm.memory import NAMM, NAMMConfig
from namm.models.load import local_path
from namm.policies import NAMMPolicy
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim
from namm.tasks.documents import Document
from namm.tasks.encode import to_repeat

ACTING = (0.12, 0.5)  # fractions that are kept where a first memory acts


@dataclass(frozen=True)
class DistillConfig:
    """How a memory is distilled.

    Attributes:
        lengths: tokens of the documents, taken in turn. A memory must be taught at the lengths at which it will be
            used: ages, averages and the number of competitors all grow with them.
        documents: how many documents each model reads.
        horizon: tokens at a passage's end where nothing is recorded, see `record_document`; less for short passages.
        facts: one hidden random fact for about so many tokens; 0 hides none.
        heads: heads recorded at each update of each pass.
        first: share of the documents that are recorded with a full cache only. A first memory is trained on them, and
            acts on the others, so that features are also learned as they look once most tokens are gone.
        kept: the fraction that the memory aims at unless its user says otherwise.
        training: see `TrainConfig`; its seed is the seed of everything.
    """

    lengths: tuple[int, ...] = (1792, 2560)
    documents: int = 12
    horizon: int = 512
    facts: int = 150
    heads: int = 24
    first: float = 0.35
    kept: float = 0.25
    training: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.documents < 2 or self.heads < 1 or not self.lengths or not 0 < self.first < 1 or not 0 < self.kept < 1:
            raise ValueError(f"bad distillation settings: {self}")


def distill(
    models: Sequence[Teacher],
    sources: Sequence[Sequence[Document]],
    folder: str | Path,
    *,
    memory: NAMMConfig,
    settings: DistillConfig = DistillConfig(),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """Learn a memory from the attention of one model or several on texts, and write it to `folder`.

    Recordings and the state of training are kept in ``folder/work``; run again with the same arguments, an
    interrupted distillation goes on where it stopped and ends with the same parameters. Deterministic for a seed.

    Args:
        models: each with its tokenizer. All count alike, and read passages of the same documents.
        sources: documents by where they come from; passages are taken from each in turn.

    Raises:
        ValueError: if a source has no document that is long enough, or `folder` holds anything but the work of these
            arguments.
    """
    folder, seed = Path(folder), settings.training.seed
    check_output(folder, inputs=[local_path(model.name_or_path) for model, _ in models])
    options = {"count": settings.documents, "facts": settings.facts, "seed": seed}
    lengths = whole_intervals(settings.lengths, memory.update_interval)
    passages = [
        deal(cut_evenly(tokenizer, sources, lengths=lengths, **options), settings.documents, 1)[0]
        for _, tokenizer in models
    ]
    depends = {
        "models": [model_fingerprint(model) for model, _ in models],
        "memory": asdict(memory),
        "settings": asdict(settings),
        "passages": fingerprint(*(passage.ids for own in passages for passage in own)),
    }
    with claim(folder, "distillation", depends):
        (folder / "work").mkdir(exist_ok=True)
        learned = _learn(models, passages, folder / "work", memory, settings, progress)
        learned = replace(learned, config=replace(learned.config, kept=settings.kept))
        learned.save_pretrained(folder, card("A distilled memory", "namm distill", models, settings, learned))
    return learned


def _learn(
    models: Sequence[Teacher],
    passages: Sequence[Sequence[Passage]],
    work: Path,
    memory: NAMMConfig,
    settings: DistillConfig,
    progress: Callable[[Progress], None],
) -> NAMM:
    firsts = [range(max(1, round(settings.first * len(own)))) for own in passages]
    total = sum(map(len, passages))

    def make(place: int, index: int, acting: NAMM | None) -> list[dict[str, Any]]:
        (model, tokenizer), ids = models[place], passages[place][index].ids
        rng = random.Random(f"{settings.training.seed} record {place} {index}")
        low, high = (math.log(fraction) for fraction in ACTING)
        policy = None if acting is None else NAMMPolicy(acting, kept=math.exp(rng.uniform(low, high)))
        repeat = to_repeat(tokenizer)[None]
        horizon = min(settings.horizon, ids.shape[1] // 2)
        made = record_document(
            model, ids, repeat, memory, heads=settings.heads, rng=rng, horizon=horizon, acting=policy
        )
        return [asdict(recording) for recording in made]

    def record(place: int, index: int, acting: NAMM | None, done: int) -> list[Recording]:
        found = stored(work / f"{place}-{index:04d}.pt", lambda: make(place, index, acting))
        progress(Progress("recording", done, total, passages[place][index].name))
        return [Recording(**recording) for recording in found]

    def learn(recordings: Sequence[Sequence[Recording]], training: TrainConfig, name: str) -> NAMM:
        def report(step: int, loss: float) -> None:
            progress(Progress(f"training ({name})", step, training.steps, f"loss {loss:.3f}"))

        learned = train(recordings, memory, training, checkpoint=work / f"{name}.ckpt", progress=report)
        return centre(learned, [recording for own in recordings for recording in own], settings.kept)

    done = itertools.count(1)
    recordings = [
        [recording for index in first for recording in record(place, index, None, next(done))]
        for place, first in enumerate(firsts)
    ]
    # the memory that acts errs on the side of keeping what may be needed, as influence_loss does with power 1
    acting = learn(
        recordings, replace(settings.training, steps=max(1, settings.training.steps // 4), power=1.0), "first"
    )
    for place, first in enumerate(firsts):
        for index in range(len(first), len(passages[place])):
            recordings[place] += record(place, index, acting, next(done))
    return learn(recordings, settings.training, "final")
