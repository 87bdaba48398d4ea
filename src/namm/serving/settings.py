"""What a server is told when it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from namm.tasks.answering import PIECE

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "t": 10**12}
ON_CPU = 128  # tokens of a piece


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        memory: bytes that all caches may hold together.
        tokens: of a prompt, its document and the answer together, and of a document; None: as many as the model knows
            positions.
        body: bytes of a request.
        queue: requests that wait at most.
        batch: requests that are served at once at most.
        documents: that may be on disk at most.
        rehearse: documents are read with a rehearsal, where a request does not say.
        piece: tokens of prompts that are read between two steps of the answers; longer prompts are cut into such.
        keys: of which a request must bring one; none: all are welcome.
        patience: seconds that running requests have to finish when the server is to end.
    """

    memory: int = 2 * 2**30
    tokens: int | None = None
    body: int = 16 * 2**20
    queue: int = 64
    batch: int = 32
    documents: int = 10_000
    rehearse: bool = False
    piece: int = PIECE
    keys: tuple[str, ...] = ()
    patience: float = 30.0

    def __post_init__(self) -> None:
        counts = {"memory": self.memory, "body": self.body, "queue": self.queue, "batch": self.batch}
        counts |= {
            "piece": self.piece,
            "tokens": 1 if self.tokens is None else self.tokens,
            "documents": self.documents,
        }
        if wrong := [name for name, count in counts.items() if count < 1]:
            raise ValueError(f"{wrong[0]} must be at least 1, got {counts[wrong[0]]}")
        if not all(self.keys):
            raise ValueError("an API key is empty: give one of some characters, or none at all")

    def on(self, device: str, piece: int | None) -> Settings:
        """With pieces of so many tokens, or as they suit a kind of device: on a CPU shorter ones cost little more."""
        return replace(self, piece=piece or (ON_CPU if device == "cpu" else PIECE))


def parse_bytes(text: str) -> int:
    """A number of bytes, with a unit or without.

    >>> parse_bytes("2GiB"), parse_bytes("1.5 MB"), parse_bytes("512")
    (2147483648, 1500000, 512)

    Raises:
        ValueError: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", text.strip().lower())
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is no number of bytes: write it as 512MiB or 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


def in_words(size: float) -> str:
    """Bytes for a sentence.

    >>> in_words(3 * 2**30), in_words(1000)
    ('3.0 GiB', '0.001 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
