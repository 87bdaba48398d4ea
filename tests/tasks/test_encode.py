from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizing import SPECIAL, by_setting, bytewise, sentencepiece, wordpiece

from namm.tasks.encode import beginning, encode, to_repeat
from namm.tasks.sample import Sample

TEXTS = ("The cat.", " the cat", "\n\nWhat is it?", "4711", "cat", "  two", ".", "\nat")


KINDS = {
    "without": (bytewise, []),
    "by a template": (lambda: bytewise("<s> $A"), ["<s>"]),
    "beginning and end": (lambda: bytewise("<s> $A </s>"), ["<s>"]),
    "end only": (lambda: bytewise("$A </s>"), []),
    "two": (lambda: bytewise("<s> <sop> $A"), ["<s>", "<sop>"]),
    "by a setting": (by_setting, ["<s>"]),
    "blank before all": (lambda: sentencepiece("always", "<s> $A"), ["<s>"]),
    "blank before the first": (lambda: sentencepiece("first"), []),
    "words": (wordpiece, ["<s>"]),
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    make, start = KINDS[request.param]
    tokenizer = make()
    return tokenizer, tokenizer.convert_tokens_to_ids(start)


def listed(tokenizer: Any, text: str, **options: bool) -> list[int]:
    found = encode(tokenizer, text, **options)
    assert found.dtype == torch.long and found.shape[0] == 1 and found.ndim == 2
    return found[0].tolist()


@pytest.mark.fault("A7", siblings="Sample.token_ids, namm eval, passages, distilling's REPEAT, inspection, benchmarks")
def test_a_text_begins_as_its_tokenizer_begins_texts(kind) -> None:
    tokenizer, start = kind
    assert beginning(tokenizer) == start
    for text in TEXTS:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert listed(tokenizer, text) == start + plain
        assert tokenizer("cat").input_ids[: len(start)] == start


def test_a_sample_begins_once(kind) -> None:
    tokenizer, start = kind
    context, question, answer = Sample("The cat.", "\nWhat?", " 4711").token_ids(tokenizer)
    whole = torch.cat([context, question, answer], dim=1)[0].tolist()
    assert whole[: len(start)] == start
    assert not set(whole[len(start) :]) & set(tokenizer.convert_tokens_to_ids(SPECIAL))


def test_what_a_chat_template_gives_begins_once(kind) -> None:
    tokenizer, start = kind
    text = "".join(tokenizer.convert_ids_to_tokens(start)) + "cat"
    ids = listed(tokenizer, text)
    assert ids[: len(start)] == start and ids.count(tokenizer.bos_token_id) == len(start[:1])


def test_an_empty_text_is_a_beginning_and_nothing_more(kind) -> None:
    tokenizer, start = kind
    assert listed(tokenizer, "") == start
    assert listed(tokenizer, "", begins=False) == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_in_two_pieces_is_the_text(kind, text) -> None:
    """SentencePiece puts a blank before each text that it is given; what goes on from another must not get one."""
    tokenizer, start = kind
    if "[UNK]" in tokenizer.get_vocab():
        return  # words know no blanks
    ids = listed(tokenizer, "The cat is") + listed(tokenizer, text, begins=False)
    assert tokenizer.decode(ids[len(start) :]) == "The cat is" + text


def test_a_number_that_is_continued_has_no_blank() -> None:
    tokenizer = sentencepiece("always", "<s> $A")
    assert tokenizer.convert_ids_to_tokens(listed(tokenizer, "4711", begins=False)) == list("4711")
    assert tokenizer.convert_ids_to_tokens(listed(tokenizer, " cat", begins=False)) == ["▁cat"]
    assert tokenizer.convert_ids_to_tokens(listed(tokenizer, "cat", begins=False)) == ["cat"]


@pytest.mark.fault("A10", siblings="TOML, JSONL, --file, SQuAD's JSON, memory and model configurations")
def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    tokenizer = bytewise("<s> $A")
    assert listed(tokenizer, "\ufeffcat") == listed(tokenizer, "cat")


def test_a_tokenizer_that_refuses_empty_texts_is_not_asked(characters) -> None:
    class Strict:
        def __call__(self, text: str, **options: Any) -> Any:
            assert text, "no input"
            return characters(text, **options)

        decode = staticmethod(characters.decode)

    assert listed(Strict(), "") == [] and listed(Strict(), "ab") == [97, 98]


def test_a_tokenizer_of_nothing_is_refused() -> None:
    class Silent:
        def __call__(self, text: str, **options: Any) -> Any:
            return {"input_ids": []}

    with pytest.raises(ValueError, match="Silent gives no tokens"):
        encode(Silent(), "cat")  # type: ignore[arg-type]


def test_what_comes_before_a_repetition_follows_on_a_text(kind) -> None:
    tokenizer, start = kind
    found = to_repeat(tokenizer)
    assert found.dtype == torch.long and found.ndim == 1 and len(found)
    assert not set(start) & set(found.tolist())
