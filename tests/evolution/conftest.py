"""Two runs that tests of their interruption are compared with."""

from __future__ import annotations

import pytest
import torch

from evolution.runs import RACED, evolution, here
from namm import load_model
from namm.evolution import Generation


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As workers have: with more, sums are taken in another order, and bits are compared here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def raced(reader_folder, tmp_path_factory):
    """A run of two models in two rounds, in nats, along directions."""
    model, tokenizer = load_model(reader_folder)
    folder = tmp_path_factory.mktemp("raced")
    return evolution(here(model, tokenizer, RACED), tokenizer, folder, RACED).run(), folder


@pytest.fixture(scope="session")
def uninterrupted(reader_folder, tmp_path_factory):
    model, tokenizer = load_model(reader_folder)
    folder = tmp_path_factory.mktemp("whole")
    history: list[Generation] = []
    run = evolution(here(model, tokenizer), tokenizer, folder, report=history.append)
    return run.run(), history, folder
