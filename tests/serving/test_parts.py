"""Text from tokens, stop sequences, sampling, sizes in words, and the ledger of bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from namm.serving.memory import Memory
from namm.serving.sampling import Sampling
from namm.serving.settings import Settings, in_words, parse_bytes
from namm.serving.text import PATIENCE, Stops, TextStream


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode("utf-8", "replace")


@given(st.text(max_size=30).filter(lambda text: "\ufffd" not in text))
def test_text_comes_whole_and_in_order(text: str) -> None:
    stream, pieces = TextStream(Bytes()), []
    for token in text.encode():
        pieces.append(stream.push(token))
        assert "\ufffd" not in pieces[-1], "no half of a character"
    assert "".join(pieces) + stream.end() == text


def test_bytes_that_are_no_text_are_not_waited_for_long() -> None:
    stream = TextStream(Bytes())
    assert [bool(stream.push(0x80)) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    assert stream.push(ord("a")) == "a"
    half = TextStream(Bytes())
    assert half.push(0xC3) == "" and half.end() == "\ufffd"


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_stop_sequence_is_found_wherever_pieces_are_cut(pieces: list[str], sequences: list[str]) -> None:
    text, stops = "".join(pieces), Stops(sequences)
    told = [stops.push(piece) for piece in pieces]
    found = [at for at in map(text.find, sequences) if at >= 0]
    if found:
        assert stops.hit and "".join(told) in {text[:at] for at in found}
    else:
        assert not stops.hit and "".join(told) + stops.end() == text


def test_nothing_comes_after_a_stop() -> None:
    stops = Stops(["END"])
    assert [stops.push(piece) for piece in ("a E", "N", "x EN", "D b", "c")] == ["a ", "", "ENx ", "", ""]
    assert stops.hit and stops.end() == ""


def test_the_coldest_is_the_likeliest() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9])
    for sampling in (Sampling(0.0), Sampling(1e-9), Sampling(1.0, 0.0), Sampling(1.0, 1e-6)):
        assert {sampling.choose(logits) for _ in range(50)} == {1}


def test_what_is_drawn_is_as_likely_as_it_should_be() -> None:
    logits, draws = torch.tensor([2.0, 1.0, 0.0, -torch.inf]), 4000
    for temperature, top_p, kept in ((1.0, 1.0, 3), (0.5, 1.0, 3), (1.0, 0.8, 2), (1.0, 0.6, 1)):
        sampling = Sampling(temperature, top_p, 1)
        counts = torch.bincount(torch.tensor([sampling.choose(logits) for _ in range(draws)]), minlength=4)
        wanted = (logits / temperature).softmax(-1)
        wanted[kept:] = 0
        assert torch.allclose(counts / draws, wanted / wanted.sum(), atol=0.03), (temperature, top_p)


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)])
def test_nan_is_refused(sampling: Sampling) -> None:
    with pytest.raises(ValueError, match="NaN"):
        sampling.choose(torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("text", ["", "much", "-1", "2 XB", "0", "1e9", "nan", "2GiBs"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of bytes"):
        parse_bytes(text)


def test_numbers_of_bytes() -> None:
    assert [parse_bytes(text) for text in ("1", "2KiB", "3 mb", "0.5G", "1TiB")] == [
        1,
        2048,
        3 * 10**6,
        5 * 10**8,
        2**40,
    ]
    assert in_words(2**31) == "2.0 GiB"


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"queue": 0}, {"tokens": 0}, {"batch": -1}, {"keys": ("",)}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Settings(**wrong)


def test_what_is_used_stays_in_memory() -> None:
    cache: Any = object()
    memory = Memory(100)
    for name in "abc":
        memory.hold(name, 30, cache)
    memory.use("a")
    assert memory.taken == 90 and memory.make_room(10)
    assert list(memory.documents) == ["b", "c", "a"], "the last used is the last"
    assert not memory.make_room(71) and len(memory.documents) == 3, "nothing goes in vain"
    assert memory.make_room(40) and list(memory.documents) == ["c", "a"]
    assert not memory.make_room(70, but="c"), "not the one that it is for"
    memory.drop("a")
    assert "a" in memory.documents, "it is used"
    memory.leave("a")
    assert memory.make_room(100) and memory.taken == 0
    memory.hold("d", 50)
    assert not memory.make_room(60), "what is being loaded stays"
