"""Text from tokens that come one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer makes of the beginning of a character
PATIENCE = 8  # tokens; no character takes more


@dataclass
class TextStream:
    """Decodes tokens as they come, each piece of text once it is whole.

    Attributes:
        tokenizer: of the model.
        ids: so far.
        begun: where the piece before the next begins in `ids`: a token's text may depend on the one before.
        told: how many of `ids` are in what was returned.
        special: special tokens have a text too.
    """

    tokenizer: Any
    ids: list[int] = field(default_factory=list)
    begun: int = 0
    told: int = 0
    special: bool = False

    def push(self, token: int) -> str:
        """The text that is certain with this token; often empty in scripts of several bytes a character."""
        self.ids.append(token)
        return self._more(finished=False)

    def end(self) -> str:
        """What is left."""
        return self._more(finished=True)

    def _more(self, finished: bool) -> str:
        before, now = self._decoded(self.begun, self.told), self._decoded(self.begun, len(self.ids))
        finished |= len(self.ids) - self.told >= PATIENCE
        if not finished and now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self.begun, self.told = self.told, len(self.ids)
        return now[len(before) :]

    def _decoded(self, start: int, stop: int) -> str:
        return (
            str(self.tokenizer.decode(self.ids[start:stop], skip_special_tokens=not self.special))
            if stop > start
            else ""
        )


@dataclass
class Stops:
    """Holds back text that may be the beginning of a stop sequence.

    Attributes:
        sequences: none of which is to be told.
        held: text that is not told yet.
        hit: one was found, and nothing more is told.
    """

    sequences: Sequence[str]
    held: str = ""
    hit: bool = False

    def push(self, text: str) -> str:
        """What may be told now."""
        if self.hit:
            return ""
        self.held += text
        found = [at for at in map(self.held.find, self.sequences) if at >= 0]
        if found:
            self.hit, told, self.held = True, self.held[: min(found)], ""
            return told
        keep = max((_overlap(self.held, sequence) for sequence in self.sequences), default=0)
        told, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return told

    def end(self) -> str:
        """What was held back in vain."""
        told, self.held = self.held, ""
        return told


def _overlap(text: str, sequence: str) -> int:
    """How much of a text's end is the beginning of a sequence."""
    return next((n for n in range(min(len(text), len(sequence) - 1), 0, -1) if sequence.startswith(text[-n:])), 0)
