"""Where samples are scored: in this process, in processes of this machine, or on a Ray cluster.

A worker that dies loses nothing: what it had not finished is scored again elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.evolution.fitness import Score, Work, score
from namm.memory import NAMM
from namm.models import load_model
from namm.support.extras import need

log = logging.getLogger(__name__)
DEATHS = 10  # of workers, in one batch of work, before giving up
Scores = list[Score] | None
Map = Callable[[Sequence[Work]], Iterator[tuple[str, Scores]]]


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin: model, dtype and device as for `namm.load_model`, the start, threads to use."""

    model: str
    dtype: str
    device: str | None
    memory: NAMM
    threads: int | None = None


def in_process(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: NAMM) -> Map:
    """Score here, one sample after the other."""
    known: dict[bytes, float] = {}

    def run(works: Sequence[Work]) -> Iterator[tuple[str, Scores]]:
        for work in works:
            yield work.key, score(model, tokenizer, memory, work, known)

    return run


_loaded: dict[str, Any] = {}  # the model of a worker process, and what it knows of the full cache


def _score_in_worker(setup: Setup, work: Work) -> Scores:
    if not _loaded:
        if setup.threads:
            torch.set_num_threads(setup.threads)
        _loaded["model"], _loaded["tokenizer"] = load_model(setup.model, dtype=setup.dtype, device=setup.device)
        _loaded["known"] = {}
    return score(_loaded["model"], _loaded["tokenizer"], setup.memory, work, _loaded["known"])


def processes(setup: Setup, count: int) -> Map:
    """Score in `count` processes of this machine; a pool that breaks is made anew."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # forks of a process that has used torch's threads hang

    def fresh() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, mp_context=context)

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
