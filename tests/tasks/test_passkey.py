"""Hiding a pass key: once, where asked, in a context of the length asked for."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from namm.tasks import Document, Sample, pass_key
from namm.tasks.facts import random_fact
from namm.tasks.passkey import SENTENCE, WORDINGS, Wording


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """One token for every word with the space before it, line break, digit and mark."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[A-Za-z]+| ?\d|[^\w\s]| "), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")  # type: ignore[no-untyped-call]


TOKENIZER = tokenizer_of_words()


def tale(name: str, sentences: int) -> Document:
    """A document in which every sentence is different, so that a place in it can be told."""
    letters = [chr(97 + number // 26 % 26) + chr(97 + number % 26) for number in range(sentences)]
    return Document(name, " ".join(f"It rains on {name}{at}, and no {at} knows why." for at in letters), "prose")


HAYSTACK = [tale("hill", 60), tale("house", 20), tale("road", 3)]


def length(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def needle_of(sample: Sample) -> str:
    return SENTENCE.needle.strip().format(key=sample.answer)


@given(st.integers(40, 700), st.integers(0, 10**6), st.none() | st.floats(0, 1))
def test_needle_once_and_length_met(tokens: int, seed: int, depth: float | None) -> None:
    sample = pass_key(HAYSTACK, TOKENIZER, tokens=tokens, seed=seed, depth=depth)
    assert sample.context.count(needle_of(sample)) == 1
    assert sample.context.count(sample.answer) == 1
    assert len(sample.answer) == 5 and sample.answer.isdigit()
    assert sample.answer not in sample.question
    assert tokens - 3 <= length(sample.context) <= tokens
    assert sample == pass_key(HAYSTACK, TOKENIZER, tokens=tokens, seed=seed, depth=depth)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_needle_stands_between_whole_sentences_at_its_depth(seed: int, depth: float) -> None:
    sample = pass_key(HAYSTACK, TOKENIZER, tokens=400, seed=seed, depth=depth)
    before, after = sample.context.split(needle_of(sample))
    assert before == "" or before.endswith("why. ")
    assert after.strip().startswith("It")
    assert abs(length(before) / 400 - depth) < 0.1


def test_without_the_needle_the_text_is_one_stretch_of_the_haystack() -> None:
    document = tale("hill", 60)
    sample = pass_key([document], TOKENIZER, tokens=200, seed=5)
    assert sample.context.replace(" " + needle_of(sample), "") in document.text


def test_key_and_depth_belong_to_the_seed_whatever_the_length() -> None:
    short, long = (pass_key(HAYSTACK, TOKENIZER, tokens=tokens, seed=3) for tokens in (150, 600))
    assert short.answer == long.answer
    places = [sample.context.index(sample.answer) / len(sample.context) for sample in (short, long)]
    assert abs(places[0] - places[1]) < 0.1


def test_seeds_give_different_keys_places_and_texts() -> None:
    samples = [pass_key(HAYSTACK, TOKENIZER, tokens=200, seed=seed) for seed in range(20)]
    assert len({sample.answer for sample in samples}) > 15
    assert len({sample.context[:40] for sample in samples}) > 5
    assert len({sample.context.index(sample.answer) // 100 for sample in samples}) > 3


def test_short_documents_are_joined() -> None:
    haystack = [tale(name, 4) for name in ("hill", "house", "road", "river")]
    sample = pass_key(haystack, TOKENIZER, tokens=150, seed=0)
    assert length(sample.context) >= 147
    assert sum(f"on {document.name}" in sample.context for document in haystack) >= 3


def test_a_key_that_the_text_holds_already_is_drawn_anew() -> None:
    taken = pass_key(HAYSTACK, TOKENIZER, tokens=100, seed=0).answer
    haystack = [Document("taken", " ".join([f"It costs {taken}."] * 60), "prose")]
    sample = pass_key(haystack, TOKENIZER, tokens=100, seed=0)
    assert sample.answer != taken
    assert sample.context.count(sample.answer) == 1


def test_code_takes_the_needle_between_lines() -> None:
    code = "\n".join(f"name_{chr(97 + number % 26)} = call(first, second)" for number in range(100))
    sample = pass_key([Document("a.py", code, "code")], TOKENIZER, tokens=300, seed=1, depth=0.5)
    before, after = sample.context.split(" " + needle_of(sample))
    assert before.endswith(")") and after.startswith("\nname_")


def test_own_needle_and_question() -> None:
    own = Wording("\n\nThe code is {key}.\n\n", "\n\nSo the code is ")
    sample = pass_key(HAYSTACK, TOKENIZER, tokens=200, seed=1, depth=0.5, wording=own)
    assert f"why.\n\nThe code is {sample.answer}.\n\nIt" in sample.context
    assert sample.question == own.question
    assert sample.prompt == sample.context + own.question
    with pytest.raises(ValueError, match="has no place for the number"):
        Wording("The key.", "What?")


@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(sorted(WORDINGS)))
def test_every_wording_tells_the_key_once(seed: int, depth: float, name: str) -> None:
    wording = WORDINGS[name]
    sample = pass_key(HAYSTACK, TOKENIZER, tokens=400, seed=seed, depth=depth, wording=wording)
    assert sample.context.count(wording.needle.strip().format(key=sample.answer)) == 1
    assert sample.context.count(sample.answer) == 1 and sample.answer not in sample.question
    assert sample.answer == pass_key(HAYSTACK, TOKENIZER, tokens=400, seed=seed, depth=depth).answer


def test_facts_of_training_tell_a_number_in_one_of_the_wordings_only() -> None:
    told = {random_fact(random.Random(seed)).statement for seed in range(2000)}
    begun = {name: wording.needle.strip().partition("{key}")[0] for name, wording in WORDINGS.items()}
    known = {name for name, words in begun.items() if any(words in statement for statement in told)}
    assert known == {"sentence"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1.5}, "depth is 1.5; it must lie between 0"),
        ({"tokens": 5}, "leaves no room for text beside the needle"),
        ({"tokens": 10_000}, "the haystack of 3 documents has .* and .* are needed"),
        ({"haystack": []}, "the haystack of 0 documents has 0 tokens"),
    ],
)
def test_impossible_wishes_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"haystack": HAYSTACK, "tokenizer": TOKENIZER, "tokens": 200, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        pass_key(**arguments)
