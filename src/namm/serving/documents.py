"""Documents on disk: texts that were read once, each in a folder of its own whose name the server has made."""

from __future__ import annotations

import json
import re
import secrets
import shutil
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
from namm.support.lock import lock

ID = re.compile(r"doc-[0-9a-f]{32}")


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
        self._lock = lock(folder / ".serve.lock")
        self._about = about_model(model)  # once: all weights are read for it
        self._tokenizer = tokenizer_fingerprint(tokenizer)
        self.known: dict[str, Document] = {}
        self.passed_over = 0
        found = []
        for entry in folder.iterdir():
            if not (ID.fullmatch(entry.name) and entry.is_dir()):
                continue
            if not (entry / FILE).exists():
                shutil.rmtree(entry, ignore_errors=True)  # the server was killed while it was written
                continue
            document = self._read(entry)
            self.passed_over += document is None
            found += [] if document is None else [document]
        self.known = {document.id: document for document in sorted(found, key=lambda own: (own.created, own.id))}

    def save(self, cache: MemoryCache, ids: Tensor, name: str, chat: bool, rehearsed: bool = False) -> Document:
        """Write what a cache holds of the token ids ``[1, tokens]``; it is on disk when this returns."""
        stats, own = cache.stats(), new_id()
        told = (name, int(time.time()), ids.shape[1], chat, stats.undecided[0], stats.kept_fraction)
        document = Document(own, *told, stats.held_bytes + stats.other_bytes, rehearsed)
        try:
            save(cache, self.folder / own, self.tokenizer, ids, asdict(document), self._about)
        except BaseException:
            shutil.rmtree(self.folder / own, ignore_errors=True)
            raise
        self.known = self.known | {own: document}  # replaced, since other threads may be going through it
        return document

    def load(self, document: str) -> MemoryCache:
        """The cache of a known document.

        Raises:
            MemoryFileError: if its file is gone or damaged.
        """
        saved = Saved.read(self.folder / self.known[document].id)
        made = MemoryCache(self.model, saved.policy(), saved.header["engine"], saved.header["bits"])
        return saved.fill(made, self.model)

    def delete(self, document: str) -> None:
        """Forget a known document, also on disk."""
        own = self.known[document].id
        self.known = {key: value for key, value in self.known.items() if key != own}
        (self.folder / own / FILE).unlink(missing_ok=True)  # without it the rest is nothing
        shutil.rmtree(self.folder / own, ignore_errors=True)

    def held(self, document: str) -> tuple[Tensor, Tensor, int]:
        """What was kept of a known document, read from its file.

        Returns:
            ``[tokens]`` int64 ids; ``[tokens]`` int64, how many heads hold each; and how many heads there are.
        """
        with safe_open(self.folder / self.known[document].id / FILE, "pt") as file:
            ids = file.get_tensor("ids").long()[0]
            names = [name for name in file.keys() if name.endswith(".positions")]  # noqa: SIM118  # not a dict
            positions = torch.cat([file.get_tensor(name).long() for name in names])
            header = json.loads(file.metadata()[CONFIG_KEY])
        heads = sum(len(layer["rows"][0]["lengths"]) for layer in header["layers"] if "rows" in layer)
        return ids, torch.bincount(positions, minlength=len(ids)), heads

    def close(self) -> None:
        """Let another server have the folder."""
        self._lock.release()

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
