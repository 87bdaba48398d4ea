"""Documents on disk: texts that were read once, each in a folder of its own whose name the server has made."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from namm.cache import MemoryCache
from namm.cache.saved import FILE, Saved, about_model, save
from namm.memory.files import CONFIG_KEY
from namm.support.fingerprints import tokenizer_fingerprint
from namm.support.lock import Held, lock

ID = re.compile(r"doc-[0-9a-f]{32}")
LOCK = ".serve.lock"


@dataclass(frozen=True)
class Document:
    """What is known of a text without its cache.

    Attributes:
        id: made by the server.
        name: given by who had it read.
        created: seconds since 1970.
        tokens: that were read.
        chat: it begins a user's turn of a chat.
        undecided: tokens since the last decision.
        kept_fraction: of its tokens.
        bytes: that its cache holds.
        rehearsed: it was read with a rehearsal.
    """

    id: str
    name: str
    created: int
    tokens: int
    chat: bool
    undecided: int
    kept_fraction: float
    bytes: int
    rehearsed: bool = False  # of files that do not say


def new_id() -> str:
    """Of a document."""
    return f"doc-{secrets.token_hex(16)}"


def by_age(document: Document) -> tuple[int, str]:
    """To sort by."""
    return document.created, document.id


class Documents:
    """The folder of a server, which belongs to it alone while it runs.

    Args:
        folder: made where there is none.

    Attributes:
        known: documents by id, the oldest first.
        passed_over: entries that another model or tokenizer read, or that are damaged; they are left alone.

    Raises:
        ValueError: if another server is at work in the folder.
        OSError: if nothing can be written there.
    """

    def __init__(self, folder: Path, model: Any, tokenizer: Any) -> None:
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        self._changing = threading.Lock()
        self._lock = self._claim()
        self._about = about_model(model)  # once: all weights are read for it
        self._tokenizer = tokenizer_fingerprint(tokenizer)
        entries = self._entries()
        found = [document for document in map(self._read, entries) if document is not None]
        self.passed_over = len(entries) - len(found)
        self.known = {document.id: document for document in sorted(found, key=by_age)}

    def find(self, document: str) -> Document | None:
        """The document of an id, whatever that may be; None if there is none."""
        return self.known.get(document)

    def every(self) -> list[Document]:
        """All documents, the oldest first."""
        return list(self.known.values())

    def count(self) -> int:
        """How many there are."""
        return len(self.known)

    def save(
        self,
        cache: MemoryCache,
        ids: Tensor,
        name: str,
        chat: bool,
        rehearsed: bool = False,
        own: str | None = None,
    ) -> Document:
        """Write what a cache holds of the token ids ``[1, tokens]``; it is on disk when this returns.

        Args:
            own: its id; None: a new one.
        """
        stats, own = cache.stats(), own or new_id()
        told = (name, int(time.time()), ids.shape[1], chat, stats.undecided[0], stats.kept_fraction)
        document = Document(own, *told, stats.held_bytes + stats.other_bytes, rehearsed)
        try:
            save(cache, self.folder / own, self.tokenizer, ids, asdict(document), self._about)
        except BaseException:
            shutil.rmtree(self.folder / own, ignore_errors=True)
            raise
        self._add(document)
        return document

    def load(self, document: str) -> MemoryCache:
        """The cache of a known document.

        Raises:
            MemoryFileError: if its file is gone or damaged. KeyError: if it is not known.
        """
        saved = Saved.read(self._entry(document))
        made = MemoryCache(self.model, saved.policy(), saved.header["engine"], saved.header["bits"])
        return saved.fill(made, self.model)

    def delete(self, document: str) -> None:
        """Forget a document, also on disk; that another server has deleted it meanwhile is no fault."""
        if (found := self.find(document)) is None:
            return
        entry = self.folder / found.id
        self._drop(document)
        (entry / FILE).unlink(missing_ok=True)  # without it the rest is nothing
        shutil.rmtree(entry, ignore_errors=True)

    def held(self, document: str) -> tuple[Tensor, Tensor, int]:
        """What was kept of a known document, read from its file.

        Returns:
            ``[tokens]`` int64 ids; ``[tokens]`` int64, how many heads hold each; and how many heads there are.
        """
        with safe_open(self._entry(document) / FILE, "pt") as file:
            ids = file.get_tensor("ids").long()[0]
            names = [name for name in file.keys() if name.endswith(".positions")]  # noqa: SIM118  # not a dict
            positions = torch.cat([file.get_tensor(name).long() for name in names])
            header = json.loads(file.metadata()[CONFIG_KEY])
        heads = sum(len(layer["rows"][0]["lengths"]) for layer in header["layers"] if "rows" in layer)
        return ids, torch.bincount(positions, minlength=len(ids)), heads

    def close(self) -> None:
        """Let another server have the folder."""
        self._lock.release()

    def _entry(self, document: str) -> Path:
        found = self.find(document)
        if found is None:
            raise KeyError(document)
        return self.folder / found.id

    def _claim(self) -> Held:
        """Have the folder, and clear it of what a killed server began to write."""
        own = lock(self.folder / LOCK)
        self._clear()
        return own

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if ID.fullmatch(entry.name) and entry.is_dir() and not (entry / FILE).exists():
                shutil.rmtree(entry, ignore_errors=True)

    def _entries(self) -> list[Path]:
        """Folders of documents that were written to their end, of whatever model."""
        return [own for own in self.folder.iterdir() if ID.fullmatch(own.name) and (own / FILE).exists()]

    def _add(self, document: Document) -> None:
        with self._changing:  # replaced, since other threads may be going through it
            self.known = self.known | {document.id: document}

    def _drop(self, document: str) -> None:
        with self._changing:
            self.known = {key: value for key, value in self.known.items() if key != document}

    def _read(self, entry: Path) -> Document | None:
        """A document from the head of its file; None if it can't be used here."""
        try:
            with safe_open(entry / FILE, "pt") as file:
                header: Mapping[str, Any] = json.loads(file.metadata()[CONFIG_KEY])
            of, notes = header["model"], header["notes"]
            known = not {of["fingerprint"], of["rounded"]}.isdisjoint(self._about.values())
            if not known or header["tokenizer"] != self._tokenizer:
                return None
            return Document(**notes) if notes["id"] == entry.name else None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):
            return None
