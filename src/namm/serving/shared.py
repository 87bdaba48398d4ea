"""Documents in a folder that several servers have at once."""

from __future__ import annotations

from namm.cache.saved import FILE
from namm.serving.documents import ID, LOCK, Document, Documents, by_age
from namm.support.lock import Held, SharedLock


class SharedDocuments(Documents):
    """`Documents` of which each server sees at once what the others save and delete: the folder is what is true.

    A document is written once, under an id that nobody else has, and appears whole; deleting it is taking its file
    away. So no server has to be told of another, and none waits for another. A server whose folder belongs to it alone
    is refused beside these.
    """

    def find(self, document: str) -> Document | None:
        """See `Documents`."""
        if not ID.fullmatch(document):  # no path from a request to the disk
            return None
        entry = self.folder / document
        if not (entry / FILE).exists():
            self._drop(document)
            return None
        if document not in self.known and (found := self._read(entry)) is not None:
            self._add(found)
            return found
        return self.known.get(document)

    def every(self) -> list[Document]:
        """See `Documents`."""
        there = [entry.name for entry in self._entries()]
        for gone in self.known.keys() - set(there):
            self._drop(gone)
        return sorted(filter(None, map(self.find, there)), key=by_age)

    def count(self) -> int:
        """How many there are, those of other models counted, since they take room as well."""
        return len(self._entries())

    def _claim(self) -> Held:
        return SharedLock(self.folder / LOCK, alone=self._clear)
