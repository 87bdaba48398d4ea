"""What each feature of a memory is worth: variants trained alike on one set of recordings, judged on unseen documents.

    python benchmarks/ablation.py OUT
    python benchmarks/ablation.py OUT --models smollm2-135m qwen2.5-coder-0.5b --text prose leval longbench

Passages are those of `namm distill` with --train-split and --library: of the training splits, with facts hidden in
them, read by a full cache and, after the first third, under a first memory that forgets. They are recorded once, with
all that any variant sees; each is then trained on its columns, for the same steps. Judged are passages of the test
splits, under a full cache: tokens of all recorded heads are ranked together after every block, and the best quarter and
the best eighth should hold the tokens that go on to change their heads' outputs most. By default 8 passages a model are
learned from and 4 judged, with 400 steps and 3 seeds a variant.

Recordings lie in OUT; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Measurements, Row, described, parser, surroundings
from rich.progress import track
from torch import Tensor

import namm
from namm.learning import Passage, Recording, TrainConfig, record_document, train
from namm.learning.distil.record import Recorder
from namm.learning.passages import cut_evenly, deal, whole_intervals
from namm.learning.stored import stored
from namm.memory import NAMM, UNIVERSAL, NAMMConfig
from namm.memory.birth import BIRTH_FEATURES
from namm.memory.features import observe, observed
from namm.memory.key_value import KEY_VALUE_FEATURES
from namm.memory.spectrogram import LOG_FLOOR, band_means, compress
from namm.policies import NAMMPolicy
from namm.policies.head import Head
from namm.support.fingerprints import fingerprint
from namm.support.runs import claim
from namm.support.tensors import mean_of
from namm.tasks import read_documents, split_documents, standard_library_documents
from namm.tasks.encode import to_repeat

RICHEST = replace(UNIVERSAL, bands=(), hop=16, birth=True, key_value=True)
APART = replace(RICHEST, hop=RICHEST.window, birth=False, key_value=False)  # frames that do not overlap
BINS = RICHEST.spectrogram.bins
SHIPPED = "as shipped"
BLIND = "no spectrogram"  # its columns are zeros
VARIANTS = {
    SHIPPED: UNIVERSAL,
    "no birth rows": replace(UNIVERSAL, birth=False),
    "no keys and values": replace(UNIVERSAL, key_value=False),
    BLIND: UNIVERSAL,
    "not standardised": replace(UNIVERSAL, standardised=False),
    "one moving average": replace(UNIVERSAL, ema=UNIVERSAL.ema[:1]),
    "five bands": replace(UNIVERSAL, bands=((0, 0), (1, 2), (3, 5), (6, 10), (11, 16))),
    "all bins": replace(UNIVERSAL, bands=()),
    "frames apart (hop 32)": replace(UNIVERSAL, hop=32),
    "reach 64": replace(UNIVERSAL, reach=64),
    "reach all": replace(UNIVERSAL, reach=None),
    "hidden 16": replace(UNIVERSAL, hidden=16),
    "hidden 64": replace(UNIVERSAL, hidden=64),
}
FRACTIONS = (0.25, 0.125)
# as `namm distill`: recorded with a full cache only; kept under the first memory; steps of its training
FIRST, ACTING, FIRST_STEPS = 0.35, (0.12, 0.5), 100


@dataclass
class Widest(Recorder):
    """Records the spectrogram of `APART` beside what `RICHEST` sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.state = self.state | {"apart": APART.state["spectrogram"]}

    def observe(self, head: Head) -> None:
        before = len(self.seen)
        super().observe(head)
        if head.seen > self.document:
            return
        assert head.attention is not None
        apart = {"spectrogram": head.columns["apart"]}
        observe(apart, mean_of(head.attention), head.new, APART)
        if len(self.seen) > before:
            *what, found = self.seen[-1]
            more = observed(apart, APART).to("cpu", torch.float16)
            self.seen[-1] = (*what, torch.cat([found, more], dim=1))  # type: ignore[assignment]


def columns(recording: Recording, name: str) -> Recording:
    """Of a recording what one variant sees."""
    config = VARIANTS[name]
    averages = [RICHEST.ema.index(coefficient) for coefficient in config.ema]
    spectral = BINS * len(RICHEST.ema)
    parts = recording.observed.float().split([spectral, BIRTH_FEATURES, KEY_VALUE_FEATURES, spectral], dim=1)
    logs = parts[0 if config.hop == RICHEST.hop else 3].unflatten(1, (-1, BINS))[:, averages]
    magnitudes = (logs.exp() - LOG_FLOOR).clamp_min(0)
    if config.bands:
        magnitudes = magnitudes @ band_means(config.bands, BINS, logs.dtype, logs.device).T
    seen = [compress(magnitudes, config.spectrogram).flatten(1) * (name != BLIND)]
    seen += [parts[1]] * config.birth + [parts[2]] * config.key_value
    return replace(recording, observed=torch.cat(seen, dim=1).half())


def state_bytes(config: NAMMConfig) -> int:
    """Of a token and head in a cache, its position included."""
    return 4 + sum(math.prod(column.shape) * column.dtype.itemsize for column in config.state.values())


@torch.no_grad()
def judge(memory: NAMM, recordings: Sequence[Recording]) -> list[Row]:
    """How well the best tokens by score are those of most influence, mean over the updates of a passage."""
    updates: dict[int, list[Recording]] = {}
    for recording in recordings:
        updates.setdefault(len(recording.ages), []).append(recording)
    found: dict[float, list[Tensor]] = {fraction: [] for fraction in FRACTIONS}
    for heads in updates.values():
        scores = torch.cat([memory.scores(memory.features(one.observed.float(), one.ages)) for one in heads])
        influence = torch.cat([one.influence.float() for one in heads])
        for fraction, values in found.items():
            keep = torch.zeros(len(scores), dtype=torch.bool)
            keep[scores.topk(int(fraction * len(scores))).indices] = True
            tops = [keep[influence.topk(max(1, len(scores) * part // 100)).indices].float().mean() for part in (5, 1)]
            values.append(torch.stack([influence[keep].sum() / influence.sum(), *tops]))
    return [
        {"kept": fraction}
        | dict(zip(("influence", "top_5", "top_1"), torch.stack(values).mean(0).tolist(), strict=True))
        for fraction, values in found.items()
    ]


def passages(tokenizer: Any, arguments: argparse.Namespace) -> dict[str, list[Passage]]:
    """To learn from ("train"), and to judge by ("test")."""
    sources = [*(read_documents(path) for path in arguments.text), standard_library_documents()]
    splits = [split_documents(source, seed=0) for source in sources]
    counts = {"train": arguments.documents, "test": arguments.judged}
    lengths = {"train": arguments.lengths, "test": [max(arguments.lengths)]}
    return {
        split: deal(
            cut_evenly(
                tokenizer,
                [own[split] for own in splits],
                lengths=whole_intervals(lengths[split], RICHEST.update_interval),
                count=count,
                facts=150,
                seed=0,
            ),
            count,
            1,
        )[0]
        for split, count in counts.items()
    }


def record(
    loaded: Any, passage: Passage, heads: int, number: str, file: Path, first: NAMM | None = None
) -> list[Recording]:
    """Of one passage, with a memory that forgets too if there is one already; done once."""
    model, tokenizer = loaded
    rng = random.Random(number)
    kept = math.exp(rng.uniform(*map(math.log, ACTING)))

    def make() -> list[dict[str, Tensor]]:
        found = record_document(
            model,
            passage.ids,
            to_repeat(tokenizer)[None],
            RICHEST,
            heads=heads,
            rng=rng,
            horizon=min(512, passage.ids.shape[1] // 2),
            acting=None if first is None else NAMMPolicy(first, kept=kept),
            recorder=Widest,
        )
        return [asdict(recording) for recording in found]

    return [Recording(**recording) for recording in stored(file, make)]


def main() -> None:
    options = parser(__doc__, "ablation", model=False)
    options.add_argument("output", type=Path, help="folder for the recordings")
    options.add_argument("--models", nargs="+", default=["smollm2-135m"], help="as --model of the other benchmarks")
    options.add_argument("--device", help="where the models run, for example cuda")
    options.add_argument("--text", type=Path, nargs="+", default=[], help="files or folders, with Python's own library")
    options.add_argument("--documents", type=int, default=8, help="passages to learn from, of each model")
    options.add_argument("--judged", type=int, default=4, help="passages to judge by, of each model")
    options.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048], help="their tokens, taken in turn")
    options.add_argument("--heads", type=int, default=24, help="recorded at every update")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--seeds", type=int, default=3, help="of training, for each variant")
    options.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = options.parse_args()
    if arguments.quick:
        arguments.documents, arguments.judged, arguments.lengths, arguments.heads = 2, 1, [512], 4
        arguments.steps, arguments.seeds = 2, 1
    loaded = {str(name): namm.load_model(name, device=arguments.device) for name in arguments.models}
    found = {name: passages(tokenizer, arguments) for name, (_, tokenizer) in loaded.items()}
    made: Row = {
        "models": [described(name, model) for name, (model, _) in loaded.items()],
        "passages": fingerprint(*(one.ids for own in found.values() for split in own.values() for one in split)),
        "heads": arguments.heads,
    }
    with claim(arguments.output, "ablation", made | {"config": asdict(RICHEST)}):
        early = max(1, round(FIRST * arguments.documents))

        def read(name: str, split: str, part: slice, first: NAMM | None = None) -> list[list[Recording]]:
            """Recordings of some passages of one model."""
            numbered = list(enumerate(found[name][split]))[part]
            place = list(loaded).index(name)
            return [
                record(
                    loaded[name],
                    passage,
                    arguments.heads,
                    f"{place} {split} {number}",
                    arguments.output / f"{place}-{split}-{number}.pt",
                    first,
                )
                for number, passage in track(numbered, f"{name}, {split}")
            ]

        judged = {name: read(name, "test", slice(None)) for name in loaded}
        recorded = {name: read(name, "train", slice(early)) for name in loaded}
        widest = [
            [replace(one, observed=one.observed[:, : RICHEST.observed]) for own in recorded[name] for one in own]
            for name in loaded
        ]
        first = train(widest, RICHEST, TrainConfig(steps=FIRST_STEPS, power=1.0))
        for name in loaded:
            recorded[name] += read(name, "train", slice(early, None), first)

        def measure(variant: str, seed: int) -> Row:
            config = VARIANTS[variant]
            own = [[columns(one, variant) for part in parts for one in part] for parts in recorded.values()]
            memory = train(own, config, TrainConfig(steps=arguments.steps, seed=seed))
            return {
                "parameters": config.parameters,
                "state_bytes": state_bytes(config),
                "judged": [
                    {"model": name, "passage": passage.name} | row
                    for name in loaded
                    for passage, parts in zip(found[name]["test"], judged[name], strict=True)
                    for row in judge(memory, [columns(one, variant) for one in parts])
                ],
            }

        made |= {"steps": arguments.steps} | surroundings(next(iter(loaded.values()))[0].device)
        results = Measurements(arguments, made)
        for variant in track(arguments.variants, "variants"):
            for seed in range(arguments.seeds):
                results.row(partial(measure, variant, seed), variant=variant, seed=seed)
        results.write()


if __name__ == "__main__":
    main()
