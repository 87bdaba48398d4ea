import json
from functools import partial
from itertools import pairwise

import pytest

from namm.tasks import GENERATORS, Document, Sample
from namm.tasks.longbench import longbench_samples
from namm.tasks.registry import check_task

PROSE = Document("prose", "".join(f"Sentence {i} tells of the year {1000 + i}. " for i in range(200)), "prose")
CODE = Document("code.py", "\n".join(f"value_{i} = compute({i})" for i in range(200)), "code")


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("tokens", [600, 1500])
def test_a_sample_is_of_its_size_and_determined_by_its_seed(name, tokens, characters):
    haystack = [CODE] if name == "repeated_code" else [PROSE]
    sample = GENERATORS[name](haystack, characters, tokens=tokens, seed=1)
    assert 0.6 * tokens <= len(sample.context) <= 1.2 * tokens  # the words around are counted in bytes here
    assert sample.question.strip() and sample.answer.strip()
    assert sample == GENERATORS[name](haystack, characters, tokens=tokens, seed=1)
    assert sample != GENERATORS[name](haystack, characters, tokens=tokens, seed=2)


@pytest.mark.parametrize("name", ["pass_key", "multi_key", "key_value", "dialogue_topic"])
def test_the_answer_is_in_the_context_once(name, characters):
    for seed in range(5):
        sample = GENERATORS[name]([PROSE], characters, tokens=1200, seed=seed)
        assert sample.context.count(sample.answer.strip()) == 1


def test_the_asked_key_has_the_answer(characters):
    for seed in range(5):
        sample = GENERATORS["multi_key"]([PROSE], characters, tokens=1500, seed=seed)
        assert f"{sample.question.strip()} {sample.answer}." in sample.context
        sample = GENERATORS["key_value"]([], characters, tokens=900, seed=seed)
        assert f"{sample.question.strip()} {sample.answer}\n" in sample.context


def test_the_asked_fact_is_in_the_context_word_for_word(characters):
    for seed in range(5):
        sample = GENERATORS["hidden_fact"]([PROSE], characters, tokens=1500, seed=seed)
        assert sample.question.lstrip() + sample.answer in sample.context


def test_the_excerpt_is_from_the_passage_of_the_answer(characters):
    for seed in range(5):
        sample = GENERATORS["passage_retrieval"]([PROSE], characters, tokens=1500, seed=seed)
        excerpt = sample.question.split('"')[1]
        passage = sample.context.split(f"Passage {sample.answer}: ")[1].split("\n\nPassage")[0]
        assert excerpt in " ".join(passage.split())


@pytest.mark.parametrize(
    "name, count",
    [("multi_key", 4), ("hidden_fact", 3), ("key_value", 4), ("passage_retrieval", 4), ("dialogue_topic", 2)],
)
def test_several_things_can_be_asked_about_one_context(name, count, characters):
    make = partial(GENERATORS[name], [PROSE], characters, tokens=1500, seed=1)
    samples = [make(question=number) for number in range(count)]
    assert samples[0] == make() and len({sample.context for sample in samples}) == 1
    assert len({sample.question for sample in samples}) == len({sample.answer for sample in samples}) == count


def test_after_the_last_question_comes_the_first(characters):
    make = partial(GENERATORS["multi_key"], [PROSE], characters, tokens=1500, seed=1)
    assert make(question=4) == make() and make(question=5) == make(question=1)


def test_questions_are_not_asked_in_the_order_of_the_context(characters):
    """Else who is asked several need only look behind the last answer."""
    follow = 0
    for seed in range(20):
        make = partial(GENERATORS["key_value"], [], characters, tokens=900, seed=seed)
        keys = [line.partition(":")[0] for line in make().context.splitlines()]
        places = [keys.index(make(question=number).question.strip(" \n:")) for number in range(4)]
        follow += sum(later == place + 1 for place, later in pairwise(places))
    assert follow < 10  # of 60; of 33 lines about two follow by chance


def test_a_continuation_continues_its_document(characters):
    sample = GENERATORS["continuation"]([PROSE], characters, tokens=800, seed=3)
    assert sample.prompt + sample.answer in PROSE.text


def test_repeated_code_is_in_the_context(characters):
    sample = GENERATORS["repeated_code"]([PROSE, CODE], characters, tokens=800, seed=3)
    again = sample.question.split("# the same again\n")[1] + sample.answer
    assert again.lstrip() in sample.context + "\n"
    with pytest.raises(ValueError, match="needs source code"):
        GENERATORS["repeated_code"]([PROSE], characters, tokens=800, seed=3)


def test_longbench_lines(tmp_path):
    file = tmp_path / "task.jsonl"
    file.write_text(json.dumps({"context": "Long ago.", "input": "When?", "answers": ["long ago", "then"]}) + "\n\n")
    assert longbench_samples(str(file)) == [Sample("Long ago.", "\n\nWhen?\nAnswer:", " long ago")]


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "empty"),
        ("{", "task.jsonl:1"),
        ('{"context": "x"}', "answers"),
        ('{"answers": ["x"]}', "context"),
        ("[]", "object"),
    ],
)
def test_a_bad_longbench_file_is_named(tmp_path, line, message):
    file = tmp_path / "task.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=message):
        longbench_samples(str(file))
    with pytest.raises(FileNotFoundError):
        longbench_samples(str(tmp_path / "none.jsonl"))


def test_unknown_tasks_are_refused_with_a_hint():
    check_task("longbench:file.jsonl")
    with pytest.raises(ValueError, match="did you mean 'key_value'"):
        check_task("keyvalue")
    with pytest.raises(ValueError, match="unknown task"):
        check_task("longbench:")
