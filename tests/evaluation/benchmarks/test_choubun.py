from __future__ import annotations

import json

import pytest

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.choubun import CHOUBUN
from namm.evaluation.benchmarks.choubun_metrics import CHOUBUN_METRICS

QUESTION = (
    "以下の文書を注意深く読み、続く質問に答えてください。"
    "回答は必ず文書内の連続した文字列（テキストスパン）から抽出してください。"
)
ROW = {"context": "東京は{input}首都です。", "input": "首都は{context}？", "answers": ["東京", "東京都"]}
ASKED = ("### 文書 ###\n東京は{input}首都です。", "\n### 質問 ###\n首都は{context}？\n### 回答 ###\n")
SUMMARY = (
    "以下の文書を要約してください。要約は短く簡潔にしてください。"
    "また、文書の全体的な考え方、傾向、洞察を反映させてください。\n### 文書 ###\n東京は{input}首都です。"
)


def questions_of(task, tmp_path, characters, *rows, samples=None):
    (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(CHOUBUN[f"choubun/{task}"].questions(Request(characters, tmp_path, samples=samples)))


@pytest.mark.parametrize(
    "task, context, question, tokens, metric",
    [
        ("wiki_qa", f"{QUESTION}\n{ASKED[0]}", ASKED[1], 64, "f1_ja"),
        ("edinet_qa", f"{QUESTION}\n{ASKED[0]}", ASKED[1], 64, "f1_ja"),
        ("corp_sec_qa", f"{QUESTION}{ASKED[0]}", ASKED[1], 64, "f1_ja"),
        ("corp_sec_sum", SUMMARY, "\n### 要約 ###\n", 128, "rouge_l_ja"),
    ],
)
def test_prompts_are_the_published_ones(task, context, question, tokens, metric, tmp_path, characters) -> None:
    (made,) = questions_of(task, tmp_path, characters, ROW)
    assert made.context == context and made.question == question
    assert made.answers == ("東京", "東京都") and made.name == "0"
    found = CHOUBUN[f"choubun/{task}"]
    assert (found.name, found.new_tokens, found.metric) == (f"choubun/{task}", tokens, metric)
    assert metric in CHOUBUN_METRICS


def test_at_most_so_many_samples(tmp_path, characters) -> None:
    assert len(questions_of("wiki_qa", tmp_path, characters, ROW, ROW, ROW, samples=2)) == 2


def test_a_summary_needs_no_input(tmp_path, characters) -> None:
    (made,) = questions_of("corp_sec_sum", tmp_path, characters, ROW | {"input": None})
    assert made.context == SUMMARY


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"context": None}, "context"),
        ({"input": 3}, "input"),
        ({"answers": []}, "answers"),
        ({"answers": "東京"}, "answers"),
        ({"answers": [["東京"]]}, "answers"),
    ],
)
def test_malformed_rows_are_named(changes, key, tmp_path, characters) -> None:
    with pytest.raises(ValueError, match=rf"wiki_qa\.jsonl:2: '{key}'"):
        questions_of("wiki_qa", tmp_path, characters, ROW, ROW | changes)
