"""What metrics share: normal forms of texts, overlap, packages that are extras."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

# the full-width and typographic marks that LongBench and InfiniteBench take out of Chinese answers
_CHINESE_MARKS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: E501


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and surplus blanks (SQuAD, Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def chinese_letters(text: str) -> str:
    """Lower case without Western and Chinese marks, and without blanks."""
    marks = set(string.punctuation + _CHINESE_MARKS)
    return "".join("".join(character for character in text.lower() if character not in marks).split())


def f1(found: Sequence[str], expected: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words (or characters)."""
    common = sum((Counter(found) & Counter(expected)).values())
    return 2 * common / (len(found) + len(expected)) if common else 0.0


def need(name: str) -> Any:
    """A module of the extra ``eval``.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise ImportError(f"this metric needs {package}: pip install 'namm[eval]'") from None
