from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from namm.evaluation.benchmarks.base import Request
from namm.evaluation.benchmarks.longbench import LONGBENCH
from namm.evaluation.benchmarks.metrics import METRICS


def write(path, *rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(**changes):
    return {
        "input": "Who?",
        "context": "A {input} of {context}.",
        "answers": ["Ann", "Bob"],
        "all_classes": None,
    } | changes


def test_there_are_all_tasks_with_known_metrics() -> None:
    assert len(LONGBENCH) == 21
    assert all(name == task.name and task.metric in METRICS for name, task in LONGBENCH.items())


@pytest.mark.parametrize(
    "task, metric, new_tokens, stop",
    [
        ("narrativeqa", "f1", 128, ()),
        ("multifieldqa_zh", "f1_zh", 64, ()),
        ("dureader", "rouge_l_zh", 128, ()),
        ("multi_news", "rouge_l", 512, ()),
        ("trec", "classification", 64, ("\n",)),
        ("triviaqa", "f1", 32, ("\n",)),
        ("samsum", "rouge_l", 128, ("\n",)),
        ("lsht", "classification", 64, ("\n",)),
        ("passage_count", "count", 32, ()),
        ("passage_retrieval_en", "retrieval", 32, ()),
        ("passage_retrieval_zh", "retrieval_zh", 32, ()),
        ("repobench-p", "code_similarity", 64, ()),
    ],
)
def test_metrics_and_lengths_are_the_published(task, metric, new_tokens, stop) -> None:
    found = LONGBENCH[f"longbench/{task}"]
    assert (found.metric, found.new_tokens, found.stop) == (metric, new_tokens, stop)


# of the published templates: a line break or blank that is easily lost, and a language that is easily broken
@pytest.mark.parametrize(
    "task, before, after",
    [
        (
            "multi_news",
            "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
            "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        ),
        ("lsht", "请判断给定新闻的类别，下面是一些例子。\n\n", "\nWho?"),
        ("repobench-p", "Please complete the code given below. \n", "Who?Next line of code:\n"),
    ],
)
def test_prompts_are_the_published(tmp_path, characters, task, before, after) -> None:
    write(tmp_path / f"{task}.jsonl", row(all_classes=["a"]))
    (question,) = LONGBENCH[f"longbench/{task}"].questions(Request(characters, tmp_path))
    assert (question.context, question.question) == (before + row()["context"], after)


@pytest.mark.skipif("LONGBENCH_PROMPTS" not in os.environ, reason="needs the benchmark's dataset2prompt.json")
def test_prompts_equal_the_benchmarks_file(tmp_path, characters) -> None:
    for name, prompt in json.loads(Path(os.environ["LONGBENCH_PROMPTS"]).read_text("utf-8")).items():
        write(tmp_path / f"{name}.jsonl", row(context="(text)", input="(asked)", all_classes=["a"]))
        (question,) = LONGBENCH[f"longbench/{name}"].questions(Request(characters, tmp_path))
        expected = prompt.replace("{context}", "(text)").replace("{input}", "(asked)")
        assert question.context + question.question == expected
        assert question.context.endswith("(text)")


def test_the_prompt_is_cut_behind_the_context(tmp_path, characters) -> None:
    write(tmp_path / "hotpotqa.jsonl", row(), row(input="Why?"))
    request = Request(characters, tmp_path)
    first, second = LONGBENCH["longbench/hotpotqa"].questions(request)
    assert first.context.endswith("The following are given passages.\nA {input} of {context}.")  # braces in data stay
    assert first.question.endswith("any other words.\n\nQuestion: Who?\nAnswer:")
    assert second.question.endswith("Question: Why?\nAnswer:") and first.answers == ("Ann", "Bob")
    assert len(list(LONGBENCH["longbench/hotpotqa"].questions(Request(characters, tmp_path, samples=1)))) == 1


def test_files_below_the_folder_are_found(tmp_path, characters) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "lcc.jsonl", row(input=""))
    (question,) = LONGBENCH["longbench/lcc"].questions(Request(characters, tmp_path))
    assert question.question == "Next line of code:\n"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context": 3, "all_classes": ["a"]}, "trec.jsonl:1: 'context'"),
        ({"answers": []}, "'answers'"),
        ({"input": None, "all_classes": ["a"]}, "trec.jsonl:1: 'input'"),
        ({}, "'all_classes'"),
        ({"all_classes": "city"}, "'all_classes'"),
    ],
)
def test_malformed_rows_are_named(tmp_path, characters, changes, message) -> None:
    write(tmp_path / "trec.jsonl", row(**changes))
    with pytest.raises(ValueError, match=message):
        list(LONGBENCH["longbench/trec"].questions(Request(characters, tmp_path)))


@pytest.mark.parametrize(
    "content, message", [("", "empty"), ("{}\nnot json\n", "lcc.jsonl:1|lcc.jsonl:2"), ("[1]\n", "lcc.jsonl:1")]
)
def test_damaged_files_are_named(tmp_path, characters, content, message) -> None:
    (tmp_path / "lcc.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(LONGBENCH["longbench/lcc"].questions(Request(characters, tmp_path)))
