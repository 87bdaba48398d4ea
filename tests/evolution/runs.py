"""A run small enough for tests; as a program one that ends by a signal in its middle.

python runs.py MODEL FOLDER [SIGNAL SAMPLES [WORKERS]]

After so many samples it prints the ids of its workers and sends itself the signal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import torch

from namm import NAMM, NAMMConfig, load_model
from namm.evolution import Evolution, EvolveConfig, SampleSource, Stage
from namm.evolution.workers import Map, Setup, in_process, processes
from namm.support.fingerprints import model_fingerprint
from namm.tasks import Document

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9, 0.99), compression="log")
STAGES = (Stage(("pass_key", "continuation"), (70,), 2, 3), Stage(("pass_key",), (80,), 1, 2))
SETTINGS = EvolveConfig(STAGES, parameters="scorer", population=4, sigma=0.3, validation=2, test=2, strategy="cma")
WORDS = "the cat sat on a mat. A dog ran off to the sea. "
SPLITS = ("train", "validation", "test")


def memory() -> NAMM:
    return NAMM(CONFIG)


def source(tokenizer: object, settings: EvolveConfig = SETTINGS) -> SampleSource:
    documents = {split: [Document(split, f"{split.upper()}. {WORDS * 12}", "prose")] for split in SPLITS}
    return SampleSource(tokenizer, documents, {}, settings.seed)  # type: ignore[arg-type]


def evolution(scorer: Map, tokenizer: object, folder: Path, settings: EvolveConfig = SETTINGS, **options: object):
    start = options.pop("start", memory())
    options = {"model": "reader"} | options
    return Evolution(settings, start, source(tokenizer, settings), scorer, folder, **options)


def setup(folder: Path, start: NAMM | None = None) -> Setup:
    """Of workers with the model in a folder."""
    own = model_fingerprint(load_model(folder)[0])
    return Setup(str(folder), "auto", None, start or memory(), threads=1, fingerprint=own)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder, signal, samples, workers = (*sys.argv[1:], *["0"] * 5)[:5]
    model, tokenizer = load_model(name)
    scorer = processes(setup(Path(name)), int(workers)) if int(workers) else in_process(model, tokenizer, memory())
    seen = 0

    def progress(label: str, done: int, total: int) -> None:
        global seen
        seen += bool(done)
        if int(signal) and seen == int(samples):
            print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
            os.kill(os.getpid(), int(signal))

    evolution(scorer, tokenizer, Path(folder), progress=progress).run()
