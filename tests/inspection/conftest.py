from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspected import TEXT
from transformers import PreTrainedModel

from namm import NAMM, Inspection, NAMMConfig, inspect, load_model
from namm.policies import H2O, NAMMPolicy


@pytest.fixture(scope="session")
def loaded(reader_folder: Path) -> tuple[PreTrainedModel, Any]:
    """A random model and its tokenizer of bytes, which says where tokens stand."""
    return load_model(str(reader_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def memory() -> NAMM:
    return NAMM(NAMMConfig(update_interval=64))


@pytest.fixture(scope="session")
def remembered(loaded, memory: NAMM) -> Inspection:
    return inspect(*loaded, TEXT, NAMMPolicy(memory, offset=-0.02))


@pytest.fixture(scope="session")
def by_rule(loaded) -> Inspection:
    return inspect(*loaded, TEXT, H2O(budget=0.5, update_interval=64))
