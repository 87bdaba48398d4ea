"""From a memory and texts to a refined one, resumable at every step.

Rounds of two steps: a memory forgets while passages are read, and every decision is credited with what it saved of the
divergence from the full cache (`namm.learning.refine.probe`); then the network learns to move its scores by that
(`namm.learning.refine.regression`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.learning.card import card
from namm.learning.passages import Passage, cut_passages, deal, whole_intervals
from namm.learning.refine.probe import Example, Reading, make_probe, run_probe
from namm.learning.refine.regression import RefineConfig, fit
from namm.learning.stored import stored
from namm.memory import NAMM
from namm.models.load import local_path
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim
from namm.tasks.documents import Document

FACTS = 120  # one hidden fact for about so many tokens
LEAST = 3  # update intervals of a passage: two whose decisions are credited, and one more block


def refine_memory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    sources: Sequence[Sequence[Document]],
    folder: str | Path,
    *,
    lengths: Sequence[int],
    documents: int,
    settings: RefineConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """Refine a memory, and write it to `folder`.

    What was found is kept in ``folder/work``; run again with the same arguments, an interrupted run goes on where it
    stopped and ends with the same parameters. The model is left as it was.

    Args:
        memory: to begin with; the result keeps by itself the fraction that it keeps, or a quarter.
        sources: documents by where they come from; passages are taken from each in turn.
        lengths: of the passages in tokens, taken in turn. documents: number of passages.

    Raises:
        ValueError: if a source has no document that is long enough, there are fewer passages than rounds, or
            `folder` holds anything but the work of these arguments.
    """
    folder, seed = Path(folder), settings.seed
    check_output(folder, inputs=[local_path(model.name_or_path)])
    if not sources:
        raise ValueError("there are no documents to refine on: give at least one source")

    def cut(tokens: Sequence[int], count: int, place: int, purpose: str) -> list[Passage]:
        rng = random.Random(f"{seed} {purpose} {place}")
        return cut_passages(tokenizer, sources[place], lengths=tokens, count=count, facts=FACTS, rng=rng)

    whole, each = whole_intervals(lengths, memory.config.update_interval, LEAST), -(-documents // len(sources))
    passages = [cut(whole, each, place, "passages") for place in range(len(sources))]
    dealt = deal(passages, documents, settings.rounds)
    depends = {
        "model": model_fingerprint(model),
        "start": memory.fingerprint(),
        "settings": asdict(settings),
        "passages": fingerprint([len(own) for own in dealt], *(passage.ids for own in dealt for passage in own)),
    }
    with claim(folder, "refinement", depends):
        refined = run_rounds(model, tokenizer, memory, dealt, settings, folder / "work", progress)
        refined = replace(refined, config=replace(memory.config, kept=memory.config.kept or 0.25))
        origin = f"Refined on {model.name_or_path or type(model).__name__} with `namm refine`: {settings}."
        refined.save_pretrained(folder, card("A refined memory", origin, refined))
    return refined


def run_rounds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    passages: Sequence[Sequence[Passage]],
    settings: RefineConfig,
    work: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """The memory after its rounds.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        passages: for each round those that it reads, each of whole update intervals.
        work: a folder for what was found; a run that finds its own files there goes on from them.

    Raises:
        ValueError: if a round has no passage, or a passage is too short.
    """
    every = [passage for own in passages for passage in own]
    if len(passages) != settings.rounds or not all(passages):
        raise ValueError(f"each of {settings.rounds} rounds needs a passage")
    if any(passage.ids.shape[1] < LEAST * memory.config.update_interval for passage in every):
        raise ValueError(f"a passage needs {LEAST} update intervals of {memory.config.update_interval} tokens")
    work.mkdir(parents=True, exist_ok=True)
    done = 0
    for turn, own in enumerate(passages):
        examples: list[Example] = []
        for number, passage in enumerate(own):
            name = f"{turn}-{number:04d}"
            found = stored(work / f"{name}.pt", partial(_read, model, tokenizer, memory, passage, settings, name))
            examples += [Example(**example) for example in found["examples"]]
            reading, done = Reading(**found["reading"]), done + 1
            note = f"divergence {reading.passage:.3f}, of what is recalled {reading.recall:.2f}"
            progress(Progress("reading", done, len(every), f"{note}, at {reading.kept:.2f} kept"))

        def report(step: int, loss: float, stage: str = f"learning ({turn + 1} of {len(passages)})") -> None:
            progress(Progress(stage, step, settings.steps, f"loss {loss:.2f}"))

        memory = fit(memory, examples, settings, settings.bounds[turn], report, work / f"{turn}.ckpt")
    return memory


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: NAMM,
    passage: Passage,
    settings: RefineConfig,
    name: str,
) -> dict[str, Any]:
    rng = random.Random(f"{settings.seed} read {name}")
    probe = make_probe(passage, tokenizer, rng)
    low, high = (math.log(fraction) for fraction in settings.fractions)
    kept = math.exp(rng.uniform(low, high))
    examples, reading = run_probe(model, memory, probe, kept, scored=settings.scored, recall=settings.recall, rng=rng)
    return {"examples": [asdict(example) for example in examples], "reading": asdict(reading)}
