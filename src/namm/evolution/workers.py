"""Where samples are scored: in this process, in processes of this machine, or on a Ray cluster.

A worker that dies loses nothing: what it had not finished is scored again elsewhere.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.evolution.fitness import Score, Work, score
from namm.memory import NAMM
from namm.models import load_model
from namm.support.extras import need
from namm.support.fingerprints import model_fingerprint

log = logging.getLogger(__name__)
DEATHS = 10  # of workers, in one batch of work, before giving up
Scores = list[Score] | None
Map = Callable[[Sequence[Work]], Iterator[tuple[str, Scores]]]


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin.

    Attributes:
        models: names, as for `namm.load_model`, and the fingerprints that a worker must find under them.
        dtype: as for `namm.load_model`.
        device: as for `namm.load_model`.
        memory: the start.
        threads: to use, None: as torch likes.
    """

    models: Mapping[str, str]
    dtype: str
    device: str | None
    memory: NAMM
    threads: int | None = None

    def key(self, model: str) -> tuple[str, str, str | None, str]:
        """What a model is loaded by."""
        return model, self.dtype, self.device, self.models[model]


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def in_process(models: Mapping[str, Loaded], memory: NAMM) -> Map:
    """Score here, one sample after the other, with models by their names."""

    def run(works: Sequence[Work]) -> Iterator[tuple[str, Scores]]:
        for work in works:
            yield work.key, score(*models[work.model], memory, work)

    return run


_loaded: dict[tuple[str, str, str | None, str], Loaded] = {}  # of one run at most; a worker of Ray may serve several


def _load(setup: Setup, name: str) -> Loaded:
    key = setup.key(name)
    if key not in _loaded:
        for other in _loaded.keys() - {setup.key(own) for own in setup.models}:
            del _loaded[other]
        if setup.threads:
            torch.set_num_threads(setup.threads)
        model, tokenizer = load_model(name, dtype=setup.dtype, device=setup.device)
        if model_fingerprint(model) != setup.models[name]:
            raise ValueError(
                f"a worker finds another model under {name!r} than this run began with: "
                "give all machines the same files, and name a dtype"
            )
        _loaded[key] = model, tokenizer
    return _loaded[key]


def _score_in_worker(setup: Setup, work: Work) -> Scores:
    return score(*_load(setup, work.model), setup.memory, work)


def _end_with_parent() -> None:
    """A worker waits for work from a pipe that it holds open itself, so it would outlive a parent that is killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def processes(setup: Setup, count: int) -> Map:
    """Score in `count` processes of this machine; a pool that breaks is made anew."""
    context = multiprocessing.get_context("spawn")  # forks of a process that has used torch's threads hang

    def fresh() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)

    pool = [fresh()]

    def run(works: Sequence[Work]) -> Iterator[tuple[str, Scores]]:
        left, deaths = {work.key: work for work in works}, 0
        while left:
            try:
                futures = {pool[0].submit(_score_in_worker, setup, work): key for key, work in left.items()}
                for future in as_completed(futures):
                    result = future.result()
                    del left[futures[future]]
                    yield futures[future], result
            except BrokenProcessPool:
                deaths += 1
                if deaths > DEATHS:
                    raise RuntimeError(f"{deaths} workers died over the same work; is there enough memory?") from None
                log.warning("a worker died; its candidates are evaluated again")
                pool[0].shutdown(wait=False, cancel_futures=True)
                pool[0] = fresh()

    return run


def ray_cluster(setup: Setup, address: str) -> Map:
    """Score on a Ray cluster (``"local"`` starts one here); Ray repeats the tasks of workers that die."""
    ray = need("ray", "ray")
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    shared = ray.put(setup)
    task = ray.remote(max_retries=DEATHS)(_score_in_worker)

    def run(works: Sequence[Work]) -> Iterator[tuple[str, Scores]]:
        waiting = {task.remote(shared, work): work.key for work in works}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(done[0]), ray.get(done[0])

    return run
