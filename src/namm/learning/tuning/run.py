"""From a model, its memory and texts to adapters, resumable at every checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel

from namm.learning.tuning.adapters import Adapters, adapted
from namm.learning.tuning.config import TuneConfig
from namm.learning.tuning.descent import Descent
from namm.learning.tuning.loss import text_loss
from namm.learning.tuning.texts import Text
from namm.memory import NAMM
from namm.models.load import local_path
from namm.policies import NAMMPolicy
from namm.support.fingerprints import fingerprint, model_fingerprint
from namm.support.runs import Progress, check_output, claim

RECENT = 20  # steps whose mean loss is told


def tune(
    model: PreTrainedModel,
    memory: NAMM,
    texts: Sequence[Text],
    folder: str | Path,
    *,
    settings: TuneConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> list[float]:
    """Let a model learn while its memory forgets, and write the adapters that it learned to `folder`.

    ``namm.load_model(folder)`` loads the model with them. Checkpoints are kept in ``folder/work``; run again with the
    same arguments, an interrupted run goes on from the last one and ends with the same adapters, bit by bit on one
    machine. The model is left as it was.

    Args:
        texts: taken in a new order in every turn.

    Returns:
        The loss of every step, nats a token.

    Raises:
        ValueError: without texts, if the model has adapters or no name, or `folder` holds anything but the work of
            these arguments.
        ImportError: if peft is not installed.
    """
    folder = Path(folder)
    check_output(folder, inputs=[local_path(model.name_or_path)])
    if not texts:
        raise ValueError("there are no texts to learn from")
    depends = {
        "model": model_fingerprint(model),
        "memory": None if settings.kept is None else memory.fingerprint(),
        "settings": asdict(settings),
        "texts": fingerprint(*(part for text in texts for part in (text.context, text.rest, text.wanted))),
    }
    with claim(folder, "tuning", depends), adapted(model, settings) as adapters:
        (folder / "work").mkdir(exist_ok=True)
        descent = Descent(adapters.parameters, settings, folder / "work" / "descent.pt")
        learn(model, memory, texts, adapters, descent, settings, progress)
        kept = {"fingerprint": memory.fingerprint(), "kept": settings.kept} if settings.kept is not None else {}
        adapters.save(folder, kept, card(model, settings, descent.losses))
    return descent.losses


def learn(
    model: PreTrainedModel,
    memory: NAMM,
    texts: Sequence[Text],
    adapters: Adapters,
    descent: Descent,
    settings: TuneConfig,
    progress: Callable[[Progress], None],
) -> None:
    """The steps that are left; each depends on what it finds and its number alone."""
    policy = None if settings.kept is None else NAMMPolicy(memory, kept=settings.kept)
    as_it_was = adapters.disabled if settings.objective == "distill" else None
    while descent.done < settings.steps:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed * 1_000_003 + descent.done)  # of dropout
            total = 0.0
            for text in drawn(texts, descent.done, settings):
                loss = text_loss(model, text, policy, settings.piece, as_it_was, settings.masked) / settings.batch
                loss.backward()
                total += loss.item()
        descent.step(total)
        recent = descent.losses[-RECENT:]
        progress(Progress("learning", descent.done, settings.steps, f"loss {sum(recent) / len(recent):.3f}"))


def drawn(texts: Sequence[Text], step: int, settings: TuneConfig) -> list[Text]:
    """The texts of a step: all of them in an order of chance, then all again in another."""
    found = []
    for number in range(step * settings.batch, (step + 1) * settings.batch):
        turn, place = divmod(number, len(texts))
        order = random.Random(f"{settings.seed} turn {turn}").sample(range(len(texts)), len(texts))
        found.append(texts[order[place]])
    return found


def card(model: PreTrainedModel, settings: TuneConfig, losses: Sequence[float]) -> str:
    """What the adapters' card says."""
    recent = losses[-RECENT:]
    name = model.name_or_path or type(model).__name__
    kept = "everything was kept" if settings.kept is None else f"its memory kept {settings.kept} of the tokens"
    return f"""# Adapters for {name}

Learned with `namm tune` while {kept}: {settings}.

`namm.load_model` of this folder loads the model with them. Loss at the end: {sum(recent) / len(recent):.3f} nats a
token.
"""
