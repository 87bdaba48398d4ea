"""Samples for training, validation and test, whose source documents never meet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from namm.evolution.config import EvolveConfig, Stage
from namm.support.fingerprints import fingerprint
from namm.tasks import Document, Sample, packaged_prose, read_documents, split_documents, standard_library_documents
from namm.tasks.encode import encode
from namm.tasks.longbench import longbench_samples
from namm.tasks.metrics import METRICS, check_metric
from namm.tasks.registry import GENERATORS

SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Drawn:
    """A sample, where it is from, and for whom.

    Attributes:
        key: names it among those of one draw.
        model: whose tokenizer cut it.
        task: of the sample.
        number: among those of its model and task.
    """

    key: str
    model: str
    task: str
    number: int
    sample: Sample


@dataclass
class SampleSource:
    """Draws samples. A document belongs to one split by a hash of its words (see `split_documents`), and a sample of a
    split is made from its documents only; samples of a LongBench file are split in the same way, by their contexts.

    Attributes:
        documents: of each split.
        fixed: for each ``longbench:`` task the samples of each split.
    """

    tokenizer: PreTrainedTokenizerBase
    documents: dict[str, list[Document]]
    fixed: dict[str, dict[str, list[Sample]]]
    seed: int

    def draw(self, stage: Stage, split: str, count: int, label: str) -> list[tuple[str, Sample]]:
        """(task, sample), `count` of each task of the stage; another label gives other samples."""
        found = []
        for task in stage.tasks:
            for index in range(count):
                seed = int(hashlib.sha256(f"{self.seed} {split} {label} {task} {index}".encode()).hexdigest()[:8], 16)
                if task in self.fixed:
                    samples = self.fixed[task][split]
                    if not samples:
                        raise ValueError(f"{task}: no sample fell to the split {split!r}; it needs more of them")
                    found.append((task, self._middle_cut(samples[seed % len(samples)], stage.tokens[0])))
                    continue
                tokens = stage.tokens[index % len(stage.tokens)]
                try:
                    sample = GENERATORS[task](self.documents[split], self.tokenizer, tokens=tokens, seed=seed)
                except ValueError as error:
                    raise ValueError(f"task {task!r}, split {split!r}: {error}") from error
                found.append((task, sample))
        return found

    def digest(self) -> str:
        """A fingerprint of all texts, and of how the tokenizer reads their beginnings."""
        texts = [document.text for split in SPLITS for document in self.documents[split]]
        texts += [
            sample.prompt + sample.answer for splits in self.fixed.values() for own in splits.values() for sample in own
        ]
        read = [encode(self.tokenizer, text[:1000]).tolist() for text in texts[:10]]
        return fingerprint(texts, read)

    def _middle_cut(self, sample: Sample, tokens: int) -> Sample:
        """Beginning and end of a context that is too long, as LongBench cuts."""
        ids = self.tokenizer(sample.context, add_special_tokens=False)["input_ids"]
        if len(ids) <= tokens:
            return sample
        ends = (ids[: tokens // 2], ids[len(ids) - (tokens - tokens // 2) :])
        return Sample("".join(str(self.tokenizer.decode(end)) for end in ends), sample.question, sample.answer)


def read_sources(config: EvolveConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> dict[str, SampleSource]:
    """A source for each of the models, of the same texts, with the tokenizers by the models' names.

    Raises:
        ValueError: where a task has no documents or samples in one of the splits.
        ImportError: see `check_metric`.
    """
    if config.metric in METRICS:
        check_metric(config.metric)
    if config.text:
        documents = read_documents(*config.text)
    else:
        # held-out prose of the package stays held out
        documents = standard_library_documents() + _chapters(packaged_prose("demo")[0])
    split = split_documents(documents, seed=0, fractions=SPLITS)
    files = {task for stage in config.stages for task in stage.tasks} - set(GENERATORS)
    fixed = {task: _split_samples(longbench_samples(task.removeprefix("longbench:"))) for task in files}
    sources = {name: SampleSource(tokenizers[name], split, fixed, config.seed) for name in config.models}
    for name in SPLITS:
        for stage in config.stages:
            draw_for_all(sources, stage, name, 1, "check")
    return sources


def draw_for_all(sources: Mapping[str, SampleSource], stage: Stage, split: str, count: int, label: str) -> list[Drawn]:
    """Of each model and task of a stage `count` samples; another label gives other ones."""
    found = []
    for place, (model, source) in enumerate(sources.items()):
        for index, (task, sample) in enumerate(source.draw(stage, split, count, label)):
            number = index % count
            found.append(Drawn(f"{place} {task} {number}", model, task, number, sample))
    return found


def _split_samples(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    documents = [Document(str(number), sample.context, "prose") for number, sample in enumerate(samples)]
    splits = split_documents(documents, seed=0, fractions=SPLITS)
    return {name: [samples[int(document.name)] for document in own] for name, own in splits.items()}


def _chapters(document: Document, characters: int = 4_000) -> list[Document]:
    """Pieces of one long text, so that every split has some of it; a sample may run over several."""
    pieces = max(1, len(document.text) // characters)
    size = -(-len(document.text) // pieces)
    return [
        Document(f"{document.name}#{number}", document.text[number * size : (number + 1) * size], document.kind)
        for number in range(pieces)
    ]
