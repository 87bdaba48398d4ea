from __future__ import annotations

import random

import pytest
import torch

from namm.learning import Passage, cut_passages
from namm.learning.passages import deal, whole_intervals
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


def test_passages_come_from_all_of_a_document(characters) -> None:
    text = "".join(random.Random(0).choices("abcdefgh ijkl. mnop\n", k=4000))
    found = cut_passages(
        characters, [Document("a", text, "prose")], lengths=(50, 60), count=20, facts=0, rng=random.Random(0)
    )
    assert [passage.ids.shape for passage in found] == [(1, 50), (1, 60)] * 10
    begins = [text.index(bytes(passage.ids[0].tolist()).decode()) for passage in found]
    assert begins[0] == 0 and max(begins) > 1000 and len(set(begins)) > 15


def test_passages_know_the_facts_that_are_whole_in_them(characters) -> None:
    text = "Sentence number one is here. " * 400
    (found,) = cut_passages(
        characters, [Document("a", text, "prose")], lengths=(3000,), count=1, facts=100, rng=random.Random(0)
    )
    whole = characters.decode(found.ids)
    assert len(found.facts) > 3 and all(fact.statement in whole for fact in found.facts)
    hidden = whole.replace("Sentence number one is here. ", "")
    assert len(hidden) - sum(len(fact.statement) + 1 for fact in found.facts) < 120, "but for one that is cut"


@pytest.mark.fault("A7", siblings="quotations and questions follow on something, so they get no beginning")
def test_a_passage_begins_as_its_tokenizer_begins_texts(characters) -> None:
    class WithStart(type(characters)):  # type: ignore[misc]
        def __call__(self, text, return_tensors=None, add_special_tokens=True):
            encoded = super().__call__(text)
            return {"input_ids": [255] * add_special_tokens + encoded["input_ids"]}

    document = Document("one", "Sentence number one is here. " * 40, "prose")
    (found,) = cut_passages(WithStart(), [document], lengths=[300], count=1, facts=0, rng=random.Random(0))
    assert found.ids[0, 0] == 255 and not (found.ids[0, 1:] == 255).any() and found.ids.shape == (1, 300)
