from __future__ import annotations

import sys

import pytest

from namm.evaluation.benchmarks.metrics import METRICS as EVERY_METRIC
from namm.tasks.metrics import METRICS, check_metric

# metric, text, answers, labels, score by hand
CASES = [
    ("exact", " 4711. And so on", ["4711"], (), 1.0),
    ("exact", "It is 4711", ["4711"], (), 0.0),
    ("exact", "4711", ["4711"], (), 1.0),
    ("exact", "be, or not", ["to", "be"], (), 1.0),
    ("exact", "being", ["be"], (), 0.0),
    ("exact", "4711½", ["4711"], (), 0.0),
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


@pytest.mark.fault("A10", siblings="the evolution's answers, cut where the reference ends; what is published stays")
def test_a_longer_number_is_another() -> None:
    assert METRICS["exact"]("47110", ["4711"]) == 0.0
    assert METRICS["exact"](" 4711.", ["4711 "]) == 1.0


@pytest.mark.fault("A10", siblings="code_similarity, all_of, any_of, and L-Eval's first_line and printed")
@pytest.mark.parametrize("name", sorted(EVERY_METRIC))
def test_a_blank_answer_earns_nothing(name) -> None:
    for text in ("", "47 A true", "The answer is A."):
        for answers in ([""], [" ", "\n"], ["\u3000"], []):
            assert EVERY_METRIC[name](text, answers, ["A"]) == 0.0


def test_a_blank_answer_spoils_no_other() -> None:
    assert METRICS["all_of"]("Alpha", ["alpha", ""]) == 1.0
    assert METRICS["exact"]("beta", ["alpha", ""]) == 0.0


@pytest.mark.fault("C17", siblings="find_tasks for datasets")
@pytest.mark.parametrize("name", sorted(EVERY_METRIC))
def test_every_metric_can_be_tried_before_there_is_a_text(name) -> None:
    check_metric(name, EVERY_METRIC)


@pytest.mark.parametrize("name, module", [("rouge_l", "rouge"), ("f1_zh", "jieba"), ("code_similarity", "rapidfuzz")])
def test_a_metric_without_its_package_is_no_metric(name, module, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}: pip install 'namm\[eval\]'"):
        check_metric(name)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'bleu'; there are likelihood, exact"):
        check_metric("bleu")


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ImportError, match=r"rouge: pip install 'namm\[eval\]'"):
        METRICS["rouge_l"]("a", ["a"], ())


def test_an_answer_without_a_number_is_named() -> None:
    with pytest.raises(ValueError, match="'seven'"):
        METRICS["count"]("7", ["seven"], ())


def test_every_metric_has_a_case() -> None:
    assert {case[0] for case in CASES} | {"rouge_l_zh"} == set(METRICS)
