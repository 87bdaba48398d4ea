"""What may be served beside what is being served, by the bytes that it may come to hold."""

from __future__ import annotations

from dataclasses import dataclass

from namm.cache import MemoryCache
from namm.policies.base import Policy
from namm.serving.documents import Document, Documents
from namm.serving.errors import ServingError, unknown_document
from namm.serving.jobs import Generation, Job, Reading
from namm.serving.memory import Memory
from namm.serving.settings import in_words
from namm.serving.sizes import Sizes


@dataclass(frozen=True)
class Admission:
    """Reckons for each job what it may come to hold, and reserves it.

    Attributes:
        sizes: of the model's caches.
        memory: the budget.
        documents: on disk.
        policy: of new caches.
        rehearsed: the policy of those of documents that are rehearsed.
        bits: of both.
    """

    sizes: Sizes
    memory: Memory
    documents: Documents
    policy: Policy
    rehearsed: Policy
    bits: int | None

    def document(self, id: str) -> Document:
        """A document that is known; ServingError if it is not."""
        found = self.documents.find(id)
        if found is None:
            raise unknown_document(id)
        return found

    def policy_of(self, job: Job) -> Policy:
        """Of the cache of a job without a document."""
        return self.rehearsed if isinstance(job, Reading) and job.instruction is not None else self.policy

    def size(self, job: Job) -> int:
        """Bytes that a job may come to hold, its document's not counted.

        Raises:
            ServingError: if there is no such document, or they can never be had.
        """
        if job.document is None:
            own = needed = self.sizes.most(self.policy_of(job), self.bits, _new(job))
        else:
            document = self.document(job.document)
            held = self.memory.documents.get(document.id)
            own = self._forked(job, document, None if held is None else held.cache)
            needed = own + document.bytes
        if needed > self.memory.total:
            raise ServingError(
                413,
                f"this may come to hold {in_words(needed)}, and the server has {in_words(self.memory.total)} for all: "
                "send less text, or ask for fewer tokens",
                "too_large",
            )
        return own

    def reserve(self, job: Job) -> bool:
        """Reserve what a job may come to hold, if that is free; ServingError as in `size`."""
        needed = own = self.size(job)
        if job.document is not None and job.document not in self.memory.documents:
            needed += self.document(job.document).bytes
        if not self.memory.make_room(needed, but=job.document):
            return False
        self.memory.jobs[job] = own
        return True

    def correct(self, job: Job, cache: MemoryCache) -> None:
        """Reserve anew for a job whose document was loaded: it may have been read under another policy."""
        document = self.documents.find(job.document or "")
        if document is not None:
            self.memory.jobs[job] = self._forked(job, document, cache)

    def _forked(self, job: Job, document: Document, cache: MemoryCache | None) -> int:
        policy, bits = self.rehearsed if document.rehearsed else self.policy, self.bits
        if cache is not None:
            policy, bits = cache.policy, cache.bits
        return self.sizes.more(policy, bits, document.tokens, document.undecided, _new(job))


def _new(job: Job) -> int:
    """Tokens that a job may add to a cache."""
    return job.ids.shape[1] + (job.new_tokens if isinstance(job, Generation) else 0)
