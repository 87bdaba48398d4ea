"""Who holds how many bytes: requests what they may come to hold, documents what they do."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from namm.cache import MemoryCache
from namm.serving.jobs import Job


@dataclass
class HeldDocument:
    """A document in memory.

    Attributes:
        bytes: that it holds.
        cache: None while it is being loaded.
        users: requests that fork it, or wait for it.
        deleted: to go as soon as there are none.
    """

    bytes: int
    cache: MemoryCache | None = None
    users: int = 0
    deleted: bool = False


class Memory:
    """A budget of bytes.

    Attributes:
        total: of bytes.
        jobs: reserved for each.
        documents: by id, the least recently used first.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.jobs: dict[Job, int] = {}
        self.documents: OrderedDict[str, HeldDocument] = OrderedDict()

    @property
    def taken(self) -> int:
        """Bytes that are reserved or held."""
        return sum(self.jobs.values()) + sum(held.bytes for held in self.documents.values())

    def make_room(self, needed: int, but: str | None = None) -> bool:
        """Whether so many bytes are free; documents that nobody uses, `but` one, go from memory where that helps."""
        unused = [id for id, held in self.documents.items() if not held.users and held.cache is not None and id != but]
        free = self.total - self.taken
        if free + sum(self.documents[id].bytes for id in unused) < needed:
            return False
        for id in unused:
            if free >= needed:
                break
            free += self.documents.pop(id).bytes
        return True

    def hold(self, document: str, size: int, cache: MemoryCache | None = None) -> HeldDocument:
        """Hold a document, or a place for one."""
        self.documents[document] = HeldDocument(size, cache)
        return self.documents[document]

    def use(self, document: str) -> HeldDocument:
        """Keep a held document until `leave`."""
        held = self.documents[document]
        held.users += 1
        self.documents.move_to_end(document)
        return held

    def leave(self, document: str) -> None:
        """The opposite of `use`."""
        held = self.documents.get(document)
        if held is not None:
            held.users -= 1
            if held.deleted and not held.users:
                del self.documents[document]

    def drop(self, document: str) -> None:
        """Hold a document no more than it is used; one that is being loaded goes when that is done."""
        held = self.documents.get(document)
        if held is not None:
            held.deleted = True
            if not held.users:
                del self.documents[document]
