from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from tokenizing import bytewise

from namm import NAMM, NAMMConfig
from namm.evaluation.benchmarks.base import Question, Request, SkippedTaskError, Task
from namm.evaluation.replies import Reply, reply
from namm.evaluation.run import EvalConfig, Evaluation, prepare, score_of
from namm.policies.names import POLICIES, make_policy
from namm.support.journal import Journal
from namm.tasks.metrics import LIKELIHOOD

MEMORY = NAMM(NAMMConfig(update_interval=32, kept=0.5))
TEXT = "To be, or not to be, that is the question. "


def questions(request: Request):
    for number in range(request.generated):
        place = {"depth": float(number), "length": 100.0}
        yield Question(str(number), TEXT * (4 + number), " Why?", ("be", "not"), (), place)


def missing(request: Request):
    raise SkippedTaskError("get it there")


TASK = Task("made/up", "any_of", 5, questions)
LIKELY = Task("made/likely", LIKELIHOOD, 0, questions)
CONFIG = EvalConfig("reader", "memory", POLICIES, (0.5, 0.25))


@pytest.fixture
def request_(characters) -> Request:
    return Request(characters, samples=2)


def evaluation(reader, characters, path=None, config=CONFIG, **options) -> Evaluation:
    return Evaluation(reader, characters, MEMORY, config, Journal(path), **options)


def test_every_policy_meets_what_the_memory_kept(reader, characters, request_) -> None:
    rows = evaluation(reader, characters).run([TASK, LIKELY], request_)
    assert len(rows) == 2 * 2 * (1 + 2 * (len(POLICIES) - 1))
    own = {(row["task"], row["sample"], row["aim"]): row["kept"] for row in rows if row["policy"] == "namm"}
    for row in rows:
        if row["policy"] not in ("full", "namm"):
            kept = own[row["task"], row["sample"], row["aim"]]
            assert row["budget"] == kept and row["kept"] == pytest.approx(kept, abs=0.02)
        assert row["held"] > row["kept"] and 0 <= row["score"] <= 1
        if row["metric"] == LIKELIHOOD:
            assert row["score"] == pytest.approx(math.exp(row["log_probability"])) and row["text"] == ""
    assert {row["kept"] for row in rows if row["policy"] == "full"} == {1.0}
    json.dumps(rows)


def test_a_batch_keeps_what_the_memory_kept_on_average(reader, characters, request_) -> None:
    """In whatever order the policies are named."""
    config = replace(CONFIG, policies=("h2o", "namm", "full"), budgets=(0.5,), batch=2)
    rows = evaluation(reader, characters, config=config).run([TASK], request_)
    assert [row["policy"] for row in rows] == ["full"] * 2 + ["namm"] * 2 + ["h2o"] * 2
    own = [row["kept"] for row in rows if row["policy"] == "namm"]
    assert own == [pytest.approx(0.5, abs=0.02)] * 2
    assert [row["budget"] for row in rows if row["policy"] == "h2o"] == [pytest.approx(sum(own) / 2)] * 2


def test_prompts_go_into_the_chat_template_but_for_those_to_go_on_with(reader, request_) -> None:
    tokenizer = bytewise()
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}<assistant>"
    config = replace(CONFIG, policies=("full",), budgets=(0.5,), chat=True)
    tasks = [TASK, replace(TASK, name="made/on", goes_on=True)]
    rows = evaluation(reader, tokenizer, config=config).run(tasks, replace(request_, tokenizer=tokenizer))
    tokens = [row["tokens"] for row in rows]
    assert tokens[0] - tokens[2] == len("<user></><assistant>") and all(row["chat"] for row in rows)
    with pytest.raises(ValueError, match="no chat template"):
        evaluation(reader, bytewise(), config=config).run([TASK], request_)


@pytest.mark.parametrize("seen", [False, True])
def test_the_question_is_seen_if_it_is_to_be(reader, characters, request_, seen) -> None:
    config = replace(CONFIG, policies=("h2o",), budgets=(0.5,), question_seen=seen)
    run = evaluation(reader, characters, config=config)
    for row, question in zip(run.run([TASK], request_), questions(request_), strict=True):
        (found,) = reply(
            reader,
            characters,
            [run._prompt(TASK, question)],
            make_policy("h2o", 0.5, MEMORY),
            new_tokens=5,
            question_seen=seen,
        )
        assert (row["kept"], row["text"], row["held"]) == (found.kept_fraction, found.text, found.held_fraction)
        decided = len(question.context) + (len(question.question) - 1 if seen else 0)
        assert row["kept"] == round(0.5 * decided) / decided


@pytest.mark.parametrize("task, after", [(TASK, 5), (replace(TASK, new_tokens=999), 30), (LIKELY, len("be"))])
def test_prompt_and_answer_fit_in_the_window(reader, characters, task, after) -> None:
    run = evaluation(reader, characters, config=replace(CONFIG, window=60))
    prompt = run._prompt(task, next(questions(Request(characters))))
    assert len(prompt.context) + len(prompt.question) == 60 - after
    assert bytes(prompt.question.tolist()) == b" Why?" and bytes(prompt.context[:5].tolist()) == b"To be"
    whole = evaluation(reader, characters)._prompt(task, next(questions(Request(characters))))
    assert bytes(whole.context.tolist()).decode() == TEXT * 4


def test_without_a_question_the_last_token_is_asked(reader, characters) -> None:
    prompt = evaluation(reader, characters)._prompt(TASK, Question("0", "To be", "", ("be",)))
    assert (bytes(prompt.context.tolist()), bytes(prompt.question.tolist())) == (b"To b", b"e")


@pytest.mark.fault("A7", siblings="Sample.token_ids")
def test_a_prompt_begins_as_the_tokenizer_begins_texts(reader) -> None:
    """Also where a template puts it there, and a setting says nothing of it (Llama 3)."""
    tokenizer = bytewise("<s> $A </s>")
    prompt = evaluation(reader, tokenizer)._prompt(TASK, Question("0", "To be", " or not", ("be",)))
    assert tokenizer.convert_ids_to_tokens(prompt.context) == ["<s>", *"ToĠbe"]
    assert tokenizer.convert_ids_to_tokens(prompt.question) == list("ĠorĠnot")
    with pytest.raises(ValueError, match="made/up, 0: the context is empty"):
        evaluation(reader, tokenizer)._prompt(TASK, Question("0", "\n", " or not", ("be",)))


def test_nothing_finished_is_measured_again(reader, characters, request_, tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    whole = evaluation(reader, characters, path).run([TASK], request_)
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:7]) + content[7][:20])  # killed in the middle of a line
    measured: list[str] = []
    again = evaluation(reader, characters, path)
    add = again.journal.add
    again.journal.add = lambda key, row: measured.append(key) or add(key, row)  # type: ignore[method-assign]
    rows = again.run([TASK], request_)
    assert len(measured) == len(whole) - 7
    without_time = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    assert without_time == [{key: value for key, value in row.items() if key != "seconds"} for row in whole]


def test_other_settings_are_measured_anew(reader, characters, request_, tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    config = replace(CONFIG, policies=("full", "h2o"), budgets=(0.5,))
    evaluation(reader, characters, path, config).run([TASK], request_)
    before = len(path.read_text().splitlines())
    evaluation(reader, characters, path, replace(config, question_seen=True)).run([TASK], request_)
    assert len(path.read_text().splitlines()) == 2 * before
    evaluation(reader, characters, path, replace(config, window=100)).run([TASK], request_)
    assert len(path.read_text().splitlines()) == 3 * before


@pytest.mark.fault("A11", siblings="the memory's normalisation, and the version that measured")
def test_another_model_or_memory_of_the_same_name_is_measured_anew(
    reader, characters, request_, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "results.jsonl"
    config = replace(CONFIG, policies=("full", "namm"), budgets=(0.5,))

    def measured(model=reader, memory=MEMORY) -> list[str]:
        found: list[str] = []
        with Journal(path) as journal:
            add = journal.add
            journal.add = lambda key, row: found.append(row["policy"]) or add(key, row)  # type: ignore[method-assign]
            Evaluation(model, characters, memory, config, journal).run([TASK], request_)
        return found

    both = ["full", "namm"] * 2
    assert sorted(measured()) == sorted(both) and measured() == []
    other = copy.deepcopy(reader)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 7] += 1
    assert sorted(measured(other)) == sorted(both) and measured(other) == []
    shifted = replace(MEMORY, mean=MEMORY.mean + 1)
    assert measured(memory=shifted) == ["namm"] * 2 and measured(memory=shifted) == []
    monkeypatch.setattr("namm.evaluation.run.VERSION", "0.0.1")
    assert sorted(measured()) == sorted(both)


def test_a_batch_gives_the_rows_of_single_runs(reader, characters, request_) -> None:
    config = replace(CONFIG, policies=("full", "h2o"), budgets=(0.5,))
    alone = evaluation(reader, characters, config=config).run([TASK], request_)
    together = evaluation(reader, characters, config=replace(config, batch=2)).run([TASK], request_)
    key = ("sample", "policy", "text", "kept", "score")

    def chosen(rows):
        return sorted([row[name] for name in key] for row in rows)

    assert chosen(alone) == chosen(together)
    likely = evaluation(reader, characters, config=config).run([LIKELY], request_)
    assert chosen(evaluation(reader, characters, config=replace(config, batch=2)).run([LIKELY], request_)) == chosen(
        likely
    )


def test_a_task_without_data_is_skipped_with_a_line(reader, characters, request_) -> None:
    said: list[str] = []
    config = replace(CONFIG, policies=("full",))
    run = evaluation(reader, characters, config=config, skipped=said.append)
    rows = run.run([Task("made/missing", "f1", 5, missing), TASK], request_)
    assert said == ["made/missing is skipped: get it there"] and len(rows) == 2


def test_a_wrong_metric_is_named_before_any_work(reader, characters, request_) -> None:
    run = evaluation(reader, characters)
    with pytest.raises(ValueError, match="made/wrong: unknown metric 'bleu'"):
        run.run([TASK, Task("made/wrong", "bleu", 5, questions)], request_)
    assert not run.journal.rows


@pytest.mark.fault("C17", siblings="find_tasks, `prepare` for the command line")
def test_a_missing_package_is_named_before_any_work(reader, characters, request_, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)
    run = evaluation(reader, characters)
    with pytest.raises(ImportError, match=r"made/summed: this needs rouge: pip install 'namm\[eval\]'"):
        run.run([TASK, Task("made/summed", "rouge_l", 5, questions)], request_)
    assert not run.journal.rows
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    prepare([TASK])
    with pytest.raises(ImportError, match="matplotlib"):
        prepare([TASK], plots=True)


@pytest.mark.fault("A10", siblings="Sample, rows of files")
def test_a_question_without_an_answer_is_refused() -> None:
    for answers in ((), ("",), (" ", "\n")):
        with pytest.raises(ValueError, match="question '7' has no answer"):
            Question("7", "context", "question", answers)


@pytest.mark.parametrize("wrong", [{"policies": ("h20",)}, {"budgets": (0.0,)}, {"budgets": ()}, {"batch": 0}])
def test_wrong_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError):
        replace(CONFIG, **wrong)


def test_an_answer_ends_at_a_stop(reader) -> None:
    task, question = Task("made/up", "exact", 5, questions, ("\n",)), Question("0", "", "", ("be\nnot", "be"))
    assert score_of(task, question, Reply("\n\nbe\nnot", None, 1, 1, 0)) == 1.0
    assert score_of(task, replace(question, answers=("be\nnot",)), Reply("be\nnot", None, 1, 1, 0)) == 0.0
    task = Task("made/up", "classification", 5, questions)
    asked = Question("0", "", "", ("be",), ("be", "not", "or"))
    assert score_of(task, asked, Reply("be or not", None, 1, 1, 0)) == pytest.approx(1 / 3)
