"""What a learned memory's card says, and the models it is learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.memory import NAMM

Teacher = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model to learn from, with its tokenizer."""


def card(title: str, command: str, models: Sequence[Teacher], settings: Any, memory: NAMM) -> str:
    """A model card: from what, by which command and with which settings a memory was learned, and what it keeps."""
    names = ", ".join(model.name_or_path or type(model).__name__ for model, _ in models)
    return f"""# {title}

Learned from {names} with `{command}`: {settings}.

It keeps {memory.config.kept} of the tokens unless its user names another fraction or a number of tokens.
"""
