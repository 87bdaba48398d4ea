"""A run small enough for tests; as a program one that ends by a signal in its middle.

python runs.py MODEL FOLDER [SIGNAL SAMPLES [WORKERS [RACED]]]

After so many samples it prints the ids of its workers and sends itself the signal.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from namm import NAMM, NAMMConfig, load_model
from namm.evolution import Evolution, EvolveConfig, SampleSource, Stage
from namm.evolution.samples import Drawn
from namm.evolution.workers import Map, Setup, in_process, processes
from namm.support.fingerprints import model_fingerprint
from namm.tasks import Document

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9, 0.99), compression="log")
STAGES = (Stage(("pass_key", "continuation"), (70,), 2, 3), Stage(("pass_key",), (80,), 1, 2))
SETTINGS = EvolveConfig(STAGES, parameters="scorer", population=4, sigma=0.3, validation=2, test=2, strategy="cma")
RACED = replace(
    SETTINGS,
    models=("reader", "other"),
    stages=(Stage(("pass_key", "continuation"), (70,), 2, 3),),
    parameters="directions",
    rounds=2,
    metric="nats",
    tolerance=0.0,
)
WORDS = "the cat sat on a mat. A dog ran off to the sea. "
SPLITS = ("train", "validation", "test")


def memory() -> NAMM:
    return NAMM(CONFIG)


def sources(tokenizer: object, settings: EvolveConfig = SETTINGS) -> dict[str, SampleSource]:
    documents = {split: [Document(split, f"{split.upper()}. {WORDS * 12}", "prose")] for split in SPLITS}
    own = SampleSource(tokenizer, documents, {}, settings.seed)  # type: ignore[arg-type]
    return dict.fromkeys(settings.models, own)


def heads(one: Drawn) -> list[Tensor]:
    """Recorded features that stand for those of a model."""
    generator = torch.Generator().manual_seed(len(one.model))
    return [torch.randn(40, CONFIG.features, generator=generator) for _ in range(2)]


def evolution(scorer: Map, tokenizer: object, folder: Path, settings: EvolveConfig = SETTINGS, **options: object):
    start = options.pop("start", memory())
    options = {"models": {name: f"of {name}" for name in settings.models}, "record": heads} | options
    return Evolution(settings, start, sources(tokenizer, settings), scorer, folder, **options)


def here(model: object, tokenizer: object, settings: EvolveConfig = SETTINGS) -> Map:
    """One model under all the names, in this process."""
    return in_process(dict.fromkeys(settings.models, (model, tokenizer)), memory())  # type: ignore[arg-type]


def rows(folder: Path) -> dict[str, list]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return {row["key"]: row["scores"] for row in lines if "scores" in row}


def setup(folder: Path, start: NAMM | None = None) -> Setup:
    """Of workers with the model in a folder."""
    own = model_fingerprint(load_model(folder)[0])
    return Setup({str(folder): own}, "auto", None, start or memory(), threads=1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder, signal, samples, workers, raced = (*sys.argv[1:], *["0"] * 6)[:6]
    model, tokenizer = load_model(name)
    settings = replace(RACED if int(raced) else SETTINGS, models=(name,))
    scorer = processes(setup(Path(name)), int(workers)) if int(workers) else here(model, tokenizer, settings)
    seen = 0

    def progress(label: str, done: int, total: int) -> None:
        global seen
        seen += bool(done)
        if int(signal) and seen == int(samples):
            print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
            os.kill(os.getpid(), int(signal))

    evolution(scorer, tokenizer, Path(folder), settings, progress=progress).run()
