"""Continuous batching: requests join and leave between two steps of a model.

A turn reads a piece of a prompt, or several that are short, and lets every answer go on by one token. Where a prompt is
cut depends on nothing but the prompt, and every answer has a cache of its own, so that what else is served changes no
answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import torch

from namm.cache import MemoryCache
from namm.cache.together import Together, can_join, step
from namm.policies.base import Policy
from namm.serving.admission import Admission
from namm.serving.documents import Document, Documents
from namm.serving.errors import ServingError, sentence, stopping, unknown_document
from namm.serving.jobs import Failed, Generation, Job, Read, Reading
from namm.serving.memory import Memory
from namm.serving.prefill import read_some, rehearsing
from namm.serving.settings import Settings
from namm.serving.sizes import Sizes
from namm.serving.watch import Watch

LEAST = 32  # tokens as which a shorter piece counts: a pass of the model costs as much


class Scheduler:
    """Serves jobs turn by turn, in one thread.

    Args:
        policy: of new caches. bits: likewise.
        worker: where files are read and written.
        post: has a function called between two turns; from any thread.
        watch: is told what happens.

    Attributes:
        queue: jobs that wait for room.
        loading: jobs that wait for their document.
        reading: jobs whose prompt goes in, the next to get a turn first.
        saving: documents that are on their way to disk.
        answering: jobs that say one token a turn.
        memory: who holds what.
        admission: who may join.
        together: whether answers take a step as one batch.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        bits: int | None,
        documents: Documents,
        settings: Settings,
        worker: Executor,
        post: Callable[[Callable[[], None]], None],
        watch: Watch,
    ) -> None:
        self.model, self.policy, self.bits, self.documents, self.settings = model, policy, bits, documents, settings
        self.worker, self.post, self.watch = worker, post, watch
        self.memory = Memory(settings.memory)
        sizes = Sizes.of(model, settings.piece)
        self.admission = Admission(sizes, self.memory, documents, policy, rehearsing(policy) or policy, bits)
        self.queue: deque[Job] = deque()
        self.loading: list[Job] = []
        self.reading: deque[Job] = deque()
        self.saving: list[Job] = []
        self.answering: list[Generation] = []
        self.together = can_join(model, lambda: MemoryCache(model, policy, bits=bits))

    def jobs(self) -> Iterator[Job]:
        """All that is not over."""
        for some in (self.queue, self.loading, self.reading, self.saving, self.answering):
            yield from some

    @property
    def idle(self) -> bool:
        """There is nothing to do in a turn."""
        return not (self.reading or self.answering)

    def submit(self, job: Job) -> None:
        """Take a job, which `Job.tell` hears of."""
        try:
            self.admission.size(job)
        except ServingError as error:
            self._fail(job, error)
        else:
            self.queue.append(job)

    def turn(self) -> None:
        """Let go of what was cancelled, admit what there is room for, read some, and say a token of each answer."""
        self.let_go()
        self._admit()
        left = self.settings.piece
        while self.reading and left > 0:
            left -= max(LEAST, self._read(self.reading.popleft()))
        if self.answering:
            self._step()
        self._admit()

    def let_go(self) -> None:
        """Free what cancelled jobs hold; a document that is on its way to disk is deleted when it is there."""
        for job in [job for job in self.jobs() if job.cancelled and job not in self.saving]:
            self._leave(job)
            self.watch.over(job, "cancelled")

    def stop(self) -> None:
        """Give up all jobs but documents that are being saved."""
        for job in [job for job in self.jobs() if job not in self.saving]:
            self._fail(job, stopping())

    def delete(self, id: str) -> None:
        """Delete a document; jobs that fork it go on. ServingError if there is none."""
        self.documents.delete(self.admission.document(id).id)
        self.memory.drop(id)

    def _admit(self) -> None:
        while self.queue and len(self.memory.jobs) < self.settings.batch:
            job = self.queue[0]
            try:
                if not self.admission.reserve(job):
                    return
                self.queue.popleft()
                self._begin(job)
            except ServingError as error:  # its document has gone, maybe in this moment by another server
                self._fail(job, error)

    def _begin(self, job: Job) -> None:
        if job.document is None:
            self._start(job, MemoryCache(self.model, self.admission.policy_of(job), bits=self.bits))
        else:
            self._with_document(job, job.document)

    def _with_document(self, job: Job, id: str) -> None:
        load = id not in self.memory.documents
        if load:
            self.memory.hold(id, self.admission.document(id).bytes)
        held = self.memory.use(id)
        if held.cache is not None:
            self._start(job, held.cache.fork())
            return
        self.loading.append(job)
        if load:
            self._work(lambda: self.documents.load(id), lambda found: self._loaded(id, found))

    def _loaded(self, id: str, found: MemoryCache | Exception) -> None:
        waiting = [job for job in self.loading if job.document == id]
        if isinstance(found, Exception):
            gone = self.documents.find(id) is None  # deleted while it was loaded
            for job in waiting:
                self._fail(job, unknown_document(id) if gone else sentence(found), found)
            self.memory.drop(id)
            return
        held = self.memory.documents.get(id)
        if held is not None:
            held.cache = found
        for job in waiting:
            self.loading.remove(job)
            self.admission.correct(job, found)
            self._start(job, found.fork())

    def _start(self, job: Job, cache: MemoryCache) -> None:
        job.cache = cache
        if isinstance(job, Generation):
            job.before = cache.get_seq_length()
        self.reading.append(job)

    def _read(self, job: Job) -> int:
        """A pass for one prompt, of so many tokens."""
        before, tokens = job.read, 0
        try:
            found, tokens = read_some(self.model, job, self.settings.piece)
            self.watch.read(job.read - before)
            if job.read < job.ids.shape[1]:
                self.reading.append(job)
            elif isinstance(job, Generation):
                self._say(job, found)
            elif isinstance(job, Reading):
                self._save(job)
        except Exception as error:  # whatever it is, the others go on
            self._fail(job, sentence(error), error)
        return tokens

    def _step(self) -> None:
        """One token of every answer."""
        jobs = list(self.answering)
        for some in [jobs] if self.together else [[job] for job in jobs]:
            failed: dict[int, Exception] = {}
            try:
                logits = self._logits(some, failed)
            except Exception as error:
                for job in some:
                    self._fail(job, sentence(error), error)
                continue
            for row, job in enumerate(some):
                if row in failed:
                    self._fail(job, sentence(failed[row]), failed.pop(row))
                    continue
                try:
                    self._say(job, logits[row])
                except Exception as error:
                    self._fail(job, sentence(error), error)

    def _logits(self, jobs: Sequence[Generation], failed: dict[int, Exception]) -> torch.Tensor:
        """Of the tokens that come next, ``[jobs, vocabulary]``."""
        ids = torch.tensor([job.said[-1:] for job in jobs], device=self.model.device)
        caches = [job.cache for job in jobs if job.cache is not None]
        if not self.together:
            found: torch.Tensor = self.model(ids, past_key_values=caches[0], logits_to_keep=1).logits[:, -1]
            return found
        together = Together(caches)
        found = step(self.model, together, ids)
        failed.update(together.failed)
        together.failed.clear()  # an error's traceback holds `together`, and so the caches of all rows
        return found

    def _say(self, job: Generation, logits: torch.Tensor) -> None:
        over, cache = job.say(job.sampling.choose(logits)), job.cache
        assert cache is not None
        self.watch.said(job)
        if over:
            self.watch.kept(cache)
            self._leave(job)
            self.watch.over(job, "answered")
        elif len(job.said) == 1:
            self.answering.append(job)

    def _save(self, job: Reading) -> None:
        cache = job.cache
        assert cache is not None
        cache.settle()
        self.watch.kept(cache)
        self.saving.append(job)
        self._work(
            lambda: self.documents.save(cache, job.ids, job.name, job.chat, job.instruction is not None, job.id),
            lambda found: self._saved(job, cache, found),
        )

    def _saved(self, job: Reading, cache: MemoryCache, found: Document | Exception) -> None:
        if isinstance(found, Exception):
            self._fail(job, sentence(found), found)
            return
        self._leave(job)
        if job.cancelled:  # nobody knows its id
            self._work(lambda: self.documents.delete(found.id), lambda _: None)
            self.watch.over(job, "cancelled")
            return
        self.memory.hold(found.id, found.bytes, cache)
        job.tell(Read(found))
        self.watch.over(job, "read")

    def _work(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do something beside the engine; `then` gets what came of it, between two turns."""

        def do() -> None:
            try:
                found = work()
            except Exception as error:
                found = error
            self.post(lambda: then(found))

        self.worker.submit(do)

    def _fail(self, job: Job, error: ServingError, cause: Exception | None = None) -> None:
        self._leave(job)
        job.tell(Failed(error))
        self.watch.failed(job, error, cause)

    def _leave(self, job: Job) -> None:
        """Give back all that a job holds."""
        places: list[Any] = [self.queue, self.loading, self.reading, self.saving, self.answering]
        for some in places:
            if job in some:
                some.remove(job)
        if self.memory.jobs.pop(job, None) is not None and job.document is not None:
            self.memory.leave(job.document)
        job.cache = None
        if isinstance(job, Reading):
            job.passes = None  # which hold the cache
