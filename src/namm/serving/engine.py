"""The one thread that computes; all others talk to it through a queue of functions."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from namm.policies.base import Policy
from namm.serving.documents import Documents
from namm.serving.errors import ServingError, stopping
from namm.serving.jobs import Job
from namm.serving.scheduler import Scheduler
from namm.serving.settings import Settings
from namm.serving.watch import LogOnly, Watch

Result = TypeVar("Result")
log = logging.getLogger("namm.serving")


@dataclass(frozen=True)
class Snapshot:
    """A server between two turns.

    Attributes:
        queued: jobs that wait for room.
        active: jobs that hold memory.
        reserved: bytes that are reserved or held, of the budget.
        held: bytes that all caches hold, what several share counted once.
        documents: that are in memory.
    """

    queued: int
    active: int
    reserved: int
    held: int
    documents: int


class Engine:
    """Owns a model; every method may be called from any thread, and none waits for a computation but where it says so.

    Args:
        policy: what caches forget by. bits: that they hold, see `MemoryCache`.
        documents: the folder of the server.

    Attributes:
        draining: no new jobs are taken.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        documents: Documents,
        settings: Settings,
        bits: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.documents, self.settings = documents, settings
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker = ThreadPoolExecutor(1, "namm-files")
        self.scheduler = Scheduler(
            model, policy, bits, documents, settings, self._worker, self._inbox.put, watch or LogOnly()
        )
        self._lock, self._coming = threading.Lock(), 0
        self._stopped = self.draining = False
        self._thread = threading.Thread(target=self._run, name="namm-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether there are jobs that are not over."""
        return bool(self._coming or self.scheduler.queue or self.scheduler.memory.jobs)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            ServingError: if the queue is full, or the server stops.
        """
        if self.draining or not self.alive:
            raise stopping()
        with self._lock:
            waiting = self._coming + len(self.scheduler.queue)
            if not self.scheduler.queue:  # some of those that come need not wait
                waiting -= self.settings.batch - len(self.scheduler.memory.jobs)
            if waiting >= self.settings.queue:
                raise ServingError(
                    429,
                    f"{waiting} requests are waiting already: try again later",
                    "queue_full",
                    retry_after=min(60, 1 + math.ceil(waiting / self.settings.batch)),
                )
            self._coming += 1
        self._inbox.put(lambda: self._arrived(job))

    def cancel(self, job: Job) -> None:
        """Have a job given up when the turn that runs is over; what it holds is then free."""
        job.cancelled = True
        self._inbox.put(self.scheduler.let_go)

    def ask(self, what: Callable[[], Result]) -> Future[Result]:
        """Have something done between two turns, unless its future is cancelled before."""
        future: Future[Result] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(what())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(do)
        return future

    def snapshot(self) -> Snapshot:
        """To be asked for by `ask`."""
        own, memory = self.scheduler, self.scheduler.memory
        caches = [held.cache for held in memory.documents.values()], [job.cache for job in memory.jobs]
        documents, jobs = ([cache.stats() for cache in some if cache is not None] for some in caches)
        held = sum(stats.held_bytes + stats.other_bytes for stats in (*documents, *jobs))
        held -= sum(stats.shared_bytes for stats in jobs)
        return Snapshot(len(own.queue), len(memory.jobs), memory.taken, held, len(memory.documents))

    def drain(self, patience: float) -> bool:
        """Take no new jobs, and wait until those there are have ended; whether they did within so many seconds."""
        self.draining = True
        until = time.monotonic() + patience
        while self.alive and self.busy:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Give up what is left, but for documents that are being saved, and end the thread; waits for it."""
        self.draining = True
        if self.alive:
            self._inbox.put(self.scheduler.stop)
            self._inbox.put(self._stop)
            self._thread.join()
        self._worker.shutdown()
        while not self._inbox.empty():  # of documents that were saved meanwhile
            self._inbox.get()()
        self.documents.close()

    def _arrived(self, job: Job) -> None:
        self.scheduler.submit(job)
        with self._lock:
            self._coming -= 1

    def _stop(self) -> None:
        self._stopped = True

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopped:
            try:
                self._inbox_done()
                if not self._stopped:
                    self.scheduler.turn()
            except Exception:  # a fault of the scheduler itself; jobs' own do not come so far
                log.exception("the engine stops")
                self.draining = True
                self.scheduler.stop()
                raise

    def _inbox_done(self) -> None:
        """Do what others asked for; wait for something where there is nothing else to do."""
        wait = self.scheduler.idle
        while wait or not self._inbox.empty():
            self._inbox.get()()
            wait = False
