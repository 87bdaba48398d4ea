from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from namm.evaluation.benchmarks import choubun_metrics
from namm.evaluation.benchmarks.choubun_metrics import rouge_l_ja, token_f1_ja


@pytest.fixture(autouse=True)
def fresh():
    choubun_metrics._tagger.cache_clear()
    yield
    choubun_metrics._tagger.cache_clear()


@pytest.fixture
def cut_at_bars(monkeypatch) -> None:
    """A tagger whose words are known: it cuts at "|"."""

    def tagger(arguments: str):
        assert arguments == "-Owakati"
        return lambda text: [SimpleNamespace(surface=word) for word in text.split("|") if word]

    monkeypatch.setitem(sys.modules, "fugashi", SimpleNamespace(Tagger=tagger))


@pytest.mark.parametrize(
    "text, answers, expected",
    [
        ("東京|都|。", ["東京"], 2 * 1 / (2 + 1)),  # the mark is no word
        ("「|ＮＴＴ|」|ABC", ["abc"], 2 * 1 / (2 + 1)),  # lower case
        ("東京|東京", ["東京"], 2 * 1 / (2 + 1)),  # each word counts once
        ("大阪|府", ["京都|府", "大阪|府"], 1.0),  # the best answer
        ("大阪", ["京都"], 0.0),
        ("。", ["京都"], 0.0),
        ("", ["京都"], 0.0),
    ],
)
def test_f1_by_hand(text, answers, expected, cut_at_bars) -> None:
    assert token_f1_ja(text, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, answers, expected",
    [
        ("売上|は|増え|た", ["売上|は|減っ|た"], 3 / 4),  # 売上 は た in order: precision and recall 3/4
        ("は|売上", ["売上|は"], 1 / 2),  # one of two in order
        ("売上|。", ["売上"], 2 * (1 / 2) * 1 / (1 / 2 + 1)),  # the mark is a word
        ("売上", ["利益", "売上"], 1.0),
        ("", ["売上"], 0.0),
    ],
)
def test_rouge_by_hand(text, answers, expected, cut_at_bars) -> None:
    pytest.importorskip("rouge")
    assert rouge_l_ja(text, answers) == pytest.approx(expected, abs=1e-6)


def test_words_are_those_of_mecab() -> None:
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    # 東京|都|に|行く|。 against 東京|に|行く: three common words of four and three
    assert token_f1_ja("東京都に行く。", ["東京に行く"]) == pytest.approx(2 * 3 / (4 + 3))
    assert rouge_l_ja("東京都に行く。", ["東京に行く"]) == pytest.approx(2 * 3 / (5 + 3), abs=1e-6)


def test_what_is_missing_is_named(monkeypatch) -> None:
    def no_dictionary(arguments: str):
        raise RuntimeError("no dictionary")

    monkeypatch.setitem(sys.modules, "fugashi", SimpleNamespace(Tagger=no_dictionary))
    with pytest.raises(ImportError, match="pip install unidic-lite"):
        token_f1_ja("東京", ["東京"])
    monkeypatch.setitem(sys.modules, "fugashi", None)
    with pytest.raises(ImportError, match="fugashi: pip install"):
        token_f1_ja("東京", ["東京"])
