from __future__ import annotations

import sys

import pytest

from namm.tasks.metrics import METRICS

# metric, text, answers, labels, score by hand
CASES = [
    ("exact", " 4711. And so on", ["4711"], (), 1.0),
    ("exact", "It is 4711", ["4711"], (), 0.0),
    ("f1", "The red house.", ["a red car", "blue"], (), 0.5),  # articles and marks go: {red house} and {red car}
    ("f1", "", ["something"], (), 0.0),
    ("f1_zh", "北京，大学。", ["北京大学在北京"], (), 2 * 1 / (1 + 3)),  # 北京|大学 as one word or two, see below
    ("f1_zh", "！", ["北京"], (), 0.0),
    ("rouge_l", "the cat sat", ["the cat ran fast"], (), 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
    ("rouge_l", "...", ["the cat"], (), 0.0),
    ("rouge_l", "", ["the cat"], (), 0.0),
    ("classification", "Type: city or state", ["city"], ("city", "state", "river"), 0.5),
    (
        "classification",
        "Other location",
        ["Other location"],
        ("location", "Other location"),
        1.0,
    ),  # part of the right one
    ("classification", "nothing", ["city"], ("city", "state"), 0.0),
    ("classification", "", ["city"], ("city", "state"), 0.0),
    ("classification", "city or state", ["city or state"], ("city", "or", "state", "city or state"), 1.0),
    ("classification", "Other location", ["location"], ("location", "Other location"), 0.5),  # a longer, wrong one
    ("count", "There are 7, not 8", ["7"], (), 0.5),
    ("count", "many", ["7"], (), 0.0),
    ("retrieval", "Paragraph 15", ["Paragraph 15"], (), 1.0),
    ("retrieval", "15 or 1", ["Paragraph 1"], (), 0.5),
    ("retrieval", "none", ["Paragraph 1"], (), 0.0),
    ("retrieval_zh", "段落3", ["段落3"], (), 1.0),
    ("retrieval_zh", "段落３，3、4", ["段落3"], (), 1 / 3),  # a full-width digit is a number, but not this one
    ("code_similarity", "\n# a comment\n```\nreturn x\nreturn y", ["return x"], (), 1.0),
    ("code_similarity", "return x", ["return y"], (), 0.88),  # 2 * 7 of 16 characters, 87.5 in whole percent
    ("code_similarity", "# only a comment", ["return y"], (), 0.0),
    ("all_of", "Alpha, and BETA", ["alpha", "beta", "gamma", "delta"], (), 0.5),
    ("any_of", "It was Alpha.", ["alpha", "gamma"], (), 1.0),
    ("any_of", "It was not", ["alpha", "gamma"], (), 0.0),
]


@pytest.mark.parametrize("metric, text, answers, labels, expected", CASES)
def test_scores_computed_by_hand(metric, text, answers, labels, expected) -> None:
    if metric == "f1_zh" and expected:
        jieba = pytest.importorskip("jieba")
        assert list(jieba.cut("北京大学在北京")) == ["北京大学", "在", "北京"]
        assert list(jieba.cut(text)) == ["北京", "，", "大学", "。"]
        expected = 2 * 1 / (2 + 3)  # only 北京 is common
    assert METRICS[metric](text, answers, labels) == pytest.approx(expected, abs=1e-6)


def test_chinese_rouge_counts_words() -> None:
    pytest.importorskip("jieba")
    # 我|爱|北京|天安门 against 我|爱|天安门: all three in order, so recall 1 and precision 3/4
    assert METRICS["rouge_l_zh"]("我爱北京天安门", ["我爱天安门"], ()) == pytest.approx(2 * 0.75 / 1.75, abs=1e-6)


@pytest.mark.parametrize("metric, blank", [("rouge_l", " "), ("rouge_l_zh", "，")])
def test_rouge_of_very_long_sentences(metric, blank) -> None:
    pytest.importorskip("jieba")
    text = blank.join(
        ["cat", "dog"] * 600
    )  # no full stop: one sentence, deeper than Python's recursion goes by default
    limit = sys.getrecursionlimit()
    assert METRICS[metric](text, [text], ()) == pytest.approx(1.0, abs=1e-6)
    assert sys.getrecursionlimit() == limit


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ImportError, match=r"rouge: pip install 'namm\[eval\]'"):
        METRICS["rouge_l"]("a", ["a"], ())


def test_an_answer_without_a_number_is_named() -> None:
    with pytest.raises(ValueError, match="'seven'"):
        METRICS["count"]("7", ["seven"], ())


def test_every_metric_has_a_case() -> None:
    assert {case[0] for case in CASES} | {"rouge_l_zh"} == set(METRICS)
