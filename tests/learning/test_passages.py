from __future__ import annotations

import random

import pytest
import torch

from namm.learning import Passage, cut_passages
from namm.learning.passages import deal, longest, whole_intervals
from namm.tasks import Document


def named(*names: str) -> list[Passage]:
    return [Passage(name, torch.zeros(1, 1)) for name in names]


def dealt(sources: list[list[Passage]], count: int, rounds: int) -> list[str]:
    return ["".join(passage.name for passage in own) for own in deal(sources, count, rounds)]


def test_rounds_share_the_sources() -> None:
    one, two = named(*"abcdef"), named(*"uvwxyz")
    assert dealt([one], 6, 3) == ["ad", "be", "cf"]
    assert dealt([one, two], 12, 2) == ["avcxez", "ubwdyf"]
    assert dealt([one, two], 4, 2) == ["av", "ub"]
    assert dealt([one, two[:1]], 7, 2) == ["ace", "ubdf"]
    assert dealt([one, two], 3, 3) == ["a", "u", "b"], "few passages: one for every round"
    with pytest.raises(ValueError, match="2 passages are not enough for 3 rounds"):
        deal([one, two], 2, 3)


def test_lengths_are_whole_intervals() -> None:
    assert whole_intervals([100, 500, 1000], 96) == [96, 480, 960]
    assert whole_intervals([100, 500, 1000], 96, least=3) == [288, 480, 960]
    assert whole_intervals([50], 96) == [96]


def test_the_longest_are_taken() -> None:
    every = [Passage(str(n), torch.zeros(1, n)) for n in (3, 5, 1, 4)]
    assert [passage.name for passage in longest(every, 2)] == ["4", "5"]


def test_passages_begin_with_a_document_then_anywhere_and_hold_their_facts(characters) -> None:
    text = "".join(f"Sentence number {n} is here. " for n in range(400))
    document = Document("one", text, "prose")
    found = cut_passages(characters, [document], lengths=[300, 600], count=6, facts=150, rng=random.Random(0))
    assert [passage.ids.shape[1] for passage in found] == [300, 600] * 3
    whole = [characters.decode(passage.ids[0]) for passage in found]
    begins = {text.find(passage[:8]) for passage in whole[1:]}
    assert len({passage[:40] for passage in whole}) > 3 and begins != {0}
    for passage, read in zip(found, whole, strict=True):
        assert all(fact.statement in read for fact in passage.facts)
    assert any(passage.facts for passage in found)
    plain = cut_passages(characters, [document], lengths=[300], count=1, facts=0, rng=random.Random(0))
    assert characters.decode(plain[0].ids[0]) == text[:300] and not plain[0].facts


@pytest.mark.fault("A7", siblings="quotations and questions follow on something, so they get no beginning")
def test_a_passage_begins_as_its_tokenizer_begins_texts(characters) -> None:
    class WithStart(type(characters)):  # type: ignore[misc]
        def __call__(self, text, return_tensors=None, add_special_tokens=True):
            encoded = super().__call__(text)
            return {"input_ids": [255] * add_special_tokens + encoded["input_ids"]}

    document = Document("one", "Sentence number one is here. " * 40, "prose")
    (found,) = cut_passages(WithStart(), [document], lengths=[300], count=1, facts=0, rng=random.Random(0))
    assert found.ids[0, 0] == 255 and not (found.ids[0, 1:] == 255).any() and found.ids.shape == (1, 300)
