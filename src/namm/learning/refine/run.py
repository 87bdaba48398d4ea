"""From a memory and texts to a refined and calibrated one, resumable at every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.learning.calibrate import calibrate_on_longest
from namm.learning.passages import Passage, cut_passages
from namm.learning.refine.learn import RefineConfig, in_turn, refine
from namm.learning.refine.lessons import Reading
from namm.memory import NAMM
from namm.models.load import local_path
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim
from namm.tasks.documents import Document

FACTS = 120  # one hidden fact for about so many tokens


def improve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    sources: Sequence[Sequence[Document]],
    folder: str | Path,
    *,
    lengths: Sequence[int],
    documents: int,
    calibration: int = 4096,
    settings: RefineConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """Refine a memory (see `refine`), calibrate it, and write it to `folder`.

    What was found is kept in ``folder/work``; run again with the same arguments, an interrupted run goes on where it
    stopped and ends with the same parameters.

    Args:
        memory: calibrated; the result aims at the fraction that it aims at.
        sources: documents by where they come from; passages are taken from each in turn.
        lengths: of the passages in tokens, taken in turn. documents: number of passages.
        calibration: tokens of the passages that offsets are calibrated on, one from each source that has such a text.

    Raises:
        ValueError: if a source has no document that is long enough, the memory is not calibrated, or `folder` holds the
            work of other arguments.
    """
    folder, interval = Path(folder), memory.config.update_interval
    check_output(folder, inputs=[local_path(model.name_or_path)])
    if not memory.config.calibration:
        raise ValueError("only a calibrated memory can be refined, such as `namm distill` makes")
    whole = [max(3 * interval, length // interval * interval) for length in lengths]
    count = -(-documents // len(sources))
    cut = [_cut(tokenizer, source, whole, count, f"{settings.seed} passages {n}") for n, source in enumerate(sources)]
    dealt = [
        (source[number], (number + place) % settings.rounds)  # so that every round reads every source
        for number in range(max(map(len, cut)))
        for place, source in enumerate(cut)
        if number < len(source)
    ][:documents]
    passages, turns = [passage for passage, _ in dealt], [turn for _, turn in dealt]
    if len(set(turns)) < settings.rounds:  # few passages: every round needs one
        turns = in_turn(len(passages), settings.rounds)
    depends = {
        "model": model_fingerprint(model),
        "start": memory.fingerprint(),
        "settings": asdict(settings),
        "passages": fingerprint(*(passage.ids for passage in passages), turns),
    }
    with claim(folder, "refinement", depends):
        return _improve(model, tokenizer, memory, sources, folder, passages, turns, calibration, settings, progress)


def _improve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    sources: Sequence[Sequence[Document]],
    folder: Path,
    passages: Sequence[Passage],
    turns: Sequence[int],
    calibration: int,
    settings: RefineConfig,
    progress: Callable[[Progress], None],
) -> NAMM:
    def reading(done: int, found: Reading) -> None:
        note = f"divergence {found.passage:.3f}, of what is recalled {found.recall:.2f}, at {found.kept:.2f} kept"
        progress(Progress("reading", done, len(passages), note))

    def learning(turn: int, step: int, loss: float) -> None:
        progress(Progress(f"learning ({turn + 1} of {settings.rounds})", step, settings.steps, f"loss {loss:.2f}"))

    refined = refine(
        model, tokenizer, memory, passages, settings, folder / "work", turns=turns, reading=reading, learning=learning
    )
    long: list[Passage] = []
    for number, source in enumerate(sources):
        with suppress(ValueError):
            long += _cut(tokenizer, source, [calibration], 1, f"{settings.seed} calibration {number}")
    kept = memory.config.kept or 0.25
    refined = calibrate_on_longest(model, refined, long or passages, len(sources), kept, progress)
    refined.save_pretrained(folder)
    return refined


def _cut(
    tokenizer: PreTrainedTokenizerBase, source: Sequence[Document], lengths: Sequence[int], count: int, seed: str
) -> list[Passage]:
    return cut_passages(tokenizer, source, lengths=lengths, count=count, facts=FACTS, rng=random.Random(seed))
