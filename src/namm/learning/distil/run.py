"""From a model and texts to a memory, resumable at every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.learning.card import card
from namm.learning.distil.record import Recording, record_document
from namm.learning.distil.regression import TrainConfig, centre, train
from namm.learning.passages import Passage, cut_passages, whole_intervals
from namm.learning.stored import stored
from namm.memory import NAMM, NAMMConfig
from namm.models.load import local_path
from namm.policies import NAMMPolicy
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim
from namm.tasks.documents import Document
from namm.tasks.encode import encode

REPEAT = "\n\nRepeat the text above.\n\n"


@dataclass(frozen=True)
class DistillConfig:
    """How a memory is distilled.

    Attributes:
        lengths: tokens of the documents, taken in turn. A memory must be taught at the lengths at which it will be
            used: ages, averages and the number of competitors all grow with them.
        documents: how many documents to read.
        horizon: tokens at a passage's end where nothing is recorded, see `record_document`; less for short passages.
        facts: one hidden random fact for about so many tokens; 0 hides none.
        heads: heads recorded at each update of each pass.
        first: share of the documents that are recorded with a full cache only. A first memory is trained on them, and
            acts on the others, so that features are also learned as they look once most tokens are gone.
        kept: the fraction that the memory keeps unless its user says otherwise.
        training: see `TrainConfig`; its seed is the seed of everything.
    """

    lengths: tuple[int, ...] = (1792, 2560)
    documents: int = 24
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    folder: str | Path,
    *,
    memory: NAMMConfig,
    settings: DistillConfig = DistillConfig(),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """Learn a memory from a model's attention on texts, and write it to `folder`.

    Recordings and the state of training are kept in ``folder/work``; run again with the same arguments, an
    interrupted distillation goes on where it stopped and ends with the same parameters. Deterministic for a seed.

    Raises:
        ValueError: if no document is long enough, or `folder` holds anything but the work of these arguments.
    """
    folder, seed = Path(folder), settings.training.seed
    check_output(folder, inputs=[local_path(model.name_or_path)])
    passages = cut_passages(
        tokenizer,
        documents,
        lengths=whole_intervals(settings.lengths, memory.update_interval),
        count=settings.documents,
        facts=settings.facts,
        rng=random.Random(f"{seed} passages"),
    )
    depends = {
        "model": model_fingerprint(model),
        "memory": asdict(memory),
        "settings": asdict(settings),
        "passages": fingerprint(*(passage.ids for passage in passages)),
    }
    with claim(folder, "distillation", depends):
        (folder / "work").mkdir(exist_ok=True)
        learned = _learn(model, tokenizer, passages, folder / "work", memory, settings, progress)
        learned = replace(learned, config=replace(memory, kept=settings.kept))
        origin = f"Distilled from {model.name_or_path or type(model).__name__} with `namm distill`: {settings}."
        learned.save_pretrained(folder, card("A distilled memory", origin, learned))
    return learned


def _learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage],
    work: Path,
    memory: NAMMConfig,
    settings: DistillConfig,
    progress: Callable[[Progress], None],
) -> NAMM:
    first = max(1, round(settings.first * len(passages)))
    repeat = encode(tokenizer, REPEAT, begins=False)

    def make(index: int, acting: NAMMPolicy | None) -> list[dict[str, Any]]:
        rng = random.Random(f"{settings.training.seed} record {index}")
        if acting is not None:
            acting = replace(acting, offset=rng.uniform(-0.5, 1.0))
        ids = passages[index].ids
        horizon = min(settings.horizon, ids.shape[1] // 2)
        made = record_document(
            model, ids, repeat, memory, heads=settings.heads, rng=rng, horizon=horizon, acting=acting
        )
        return [asdict(recording) for recording in made]

    def record(index: int, acting: NAMMPolicy | None) -> list[Recording]:
        found = stored(work / f"{index:04d}.pt", lambda: make(index, acting))
        progress(Progress("recording", index + 1, len(passages), passages[index].name))
        return [Recording(**recording) for recording in found]

    def learn(recordings: Sequence[Recording], training: TrainConfig, name: str) -> NAMM:
        def report(step: int, loss: float) -> None:
            progress(Progress(f"training ({name})", step, training.steps, f"loss {loss:.3f}"))

        learned = train(recordings, memory, training, checkpoint=work / f"{name}.ckpt", progress=report)
        return centre(learned, recordings, settings.kept)

    recordings = [recording for index in range(first) for recording in record(index, None)]
    # the memory that acts errs on the side of keeping what may be needed, as influence_loss does with power 1
    quick = replace(settings.training, steps=max(1, settings.training.steps // 4), power=1.0)
    acting = NAMMPolicy(learn(recordings, quick, "first"), offset=0.0)
    recordings += [recording for index in range(first, len(passages)) for recording in record(index, acting)]
    return learn(recordings, settings.training, "final")
