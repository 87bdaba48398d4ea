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

from namm.learning.card import Teacher, card
from namm.learning.passages import Passage, cut_evenly, deal, whole_intervals
from namm.learning.refine.probe import Example, Reading, make_probe, run_probe
from namm.learning.refine.regression import RefineConfig, fit
from namm.learning.stored import stored
from namm.memory import NAMM
from namm.models.load import local_path
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim
from namm.tasks.documents import Document

Reader = tuple[int, Passage]  # the number of the model that reads a passage
FACTS = 120  # one hidden fact for about so many tokens
LEAST = 3  # update intervals of a passage: two whose decisions are credited, and one more block


def refine_memory(
    models: Sequence[Teacher],
    memory: NAMM,
    sources: Sequence[Sequence[Document]],
    folder: str | Path,
    *,
    lengths: Sequence[int],
    documents: int,
    settings: RefineConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """Refine a memory on one model or several, and write it to `folder`.

    What was found is kept in ``folder/work``; run again with the same arguments, an interrupted run goes on where it
    stopped and ends with the same parameters. The models are left as they were.

    Args:
        models: each with its tokenizer. All count alike.
        sources: documents by where they come from; passages are taken from each in turn.
        lengths: of the passages in tokens, taken in turn. documents: number of passages, dealt out to the models.

    Raises:
        ValueError: if a source has no document that is long enough, there are fewer passages than rounds, or `folder`
            holds anything but the work of these arguments.
    """
    folder, seed = Path(folder), settings.seed
    check_output(folder, inputs=[local_path(model.name_or_path) for model, _ in models])
    whole = whole_intervals(lengths, memory.config.update_interval, LEAST)
    count = -(-documents // len(models))
    dealt: list[list[Reader]] = [[] for _ in range(settings.rounds)]
    for place, (_, tokenizer) in enumerate(models):
        passages = cut_evenly(tokenizer, sources, lengths=whole, count=count, facts=FACTS, seed=seed)
        for own, more in zip(dealt, deal(passages, count, settings.rounds), strict=True):
            own += [(place, passage) for passage in more]
    depends = {
        "models": [model_fingerprint(model) for model, _ in models],
        "start": memory.fingerprint(),
        "settings": asdict(settings),
        "passages": fingerprint([len(own) for own in dealt], *(passage.ids for own in dealt for _, passage in own)),
    }
    with claim(folder, "refinement", depends):
        refined = run_rounds(models, memory, dealt, settings, folder / "work", progress)
        refined = replace(refined, config=replace(memory.config, kept=memory.config.kept or 0.25))
        refined.save_pretrained(folder, card("A refined memory", "namm refine", models, settings, refined))
    return refined


def run_rounds(
    models: Sequence[Teacher],
    memory: NAMM,
    passages: Sequence[Sequence[Reader]],
    settings: RefineConfig,
    work: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> NAMM:
    """The memory after its rounds.

    Deterministic for its arguments on one machine, also when it was interrupted and resumed.

    Args:
        passages: for each round those that are read, each of whole update intervals, with the number of the model.
        work: a folder for what was found; a run that finds its own files there goes on from them.

    Raises:
        ValueError: if a round has no passage of some model, or a passage is too short.
    """
    every = [passage for own in passages for _, passage in own]
    places = range(len(models))
    if len(passages) != settings.rounds or any({place for place, _ in own} != set(places) for own in passages):
        raise ValueError(f"each of {settings.rounds} rounds needs a passage of each model")
    if any(passage.ids.shape[1] < LEAST * memory.config.update_interval for passage in every):
        raise ValueError(f"a passage needs {LEAST} update intervals of {memory.config.update_interval} tokens")
    work.mkdir(parents=True, exist_ok=True)
    done = 0
    for turn, own in enumerate(passages):
        examples: list[list[Example]] = [[] for _ in places]
        for number, (place, passage) in enumerate(own):
            name = f"{turn}-{number:04d}"
            found = stored(work / f"{name}.pt", partial(_read, models[place], memory, passage, settings, name))
            examples[place] += [Example(**example) for example in found["examples"]]
            reading, done = Reading(**found["reading"]), done + 1
            note = f"divergence {reading.passage:.3f}, of what is recalled {reading.recall:.2f}"
            progress(Progress("reading", done, len(every), f"{note}, at {reading.kept:.2f} kept"))

        def report(step: int, loss: float, stage: str = f"learning ({turn + 1} of {len(passages)})") -> None:
            progress(Progress(stage, step, settings.steps, f"loss {loss:.2f}"))

        memory = fit(memory, examples, settings, settings.bounds[turn], report, work / f"{turn}.ckpt")
    return memory


def _read(teacher: Teacher, memory: NAMM, passage: Passage, settings: RefineConfig, name: str) -> dict[str, Any]:
    model, tokenizer = teacher
    rng = random.Random(f"{settings.seed} read {name}")
    probe = make_probe(passage, tokenizer, rng)
    low, high = (math.log(fraction) for fraction in settings.fractions)
    kept = math.exp(rng.uniform(low, high))
    examples, reading = run_probe(model, memory, probe, kept, scored=settings.scored, recall=settings.recall, rng=rng)
    return {"examples": [asdict(example) for example in examples], "reading": asdict(reading)}
