"""The benchmarks run, on a random model that reads bytes, and write what the tables are made from."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from namm.support.statistics import mean_interval
from namm.tasks import Document, split_documents
from namm.tasks.passkey import WORDINGS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import learning_tables  # noqa: E402
import measuring  # noqa: E402
import render  # noqa: E402
import tables  # noqa: E402
import tune_tables  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("loss", tables.loss_table),
        ("recall", tables.recall_table),
        ("bits", tables.bits_table),
        ("documents", tables.documents_table),
        ("session", tables.session_table),
        ("speed", tables.speed_table),
        ("window", tables.window_table),
        ("evolution", learning_tables.population_table),
        ("page", tables.page_table),
        ("tune", tune_tables.learned_table),
        ("tune", tune_tables.claims_table),
        ("in_turn", tune_tables.turns_table),
        ("tune_step", tune_tables.step_table),
    ],
)
def test_a_benchmark_writes_what_its_table_needs(
    script: str, table: Callable[[Any], str], reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setenv("PATH", "")  # no browser
    run(monkeypatch, f"{script}.py", "--quick", "--model", reader_folder, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["command"].startswith(f"python benchmarks/{script}.py --quick")
    lines = table(found).splitlines()
    assert len(lines) > 2 and "nan" not in lines[-1]
    assert render.origin(found).count("weights") == 2


def test_learners_side_by_side_make_the_rows_of_one_after_another(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for workers in (0, 2):
        work, file = tmp_path / f"work{workers}", tmp_path / f"{workers}.json"
        options = ("--masked", "padded", "--workers", workers, "--work", work, "--json", file)
        run(monkeypatch, "tune.py", "--quick", "--model", reader_folder, *options)
        found.append(json.loads(file.read_text(encoding="utf-8")))
    assert found[0]["rows"] == found[1]["rows"] and found[0]["model"] == found[1]["model"]


@pytest.mark.parametrize("task, questions", [("pass_key", 2), ("multi_key", 5), ("continuation", 2)])
def test_no_more_is_asked_about_a_context_than_there_is(
    task: str, questions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "tune.py", "--tasks", task, "--questions", questions, "--json", tmp_path / "found.json")
    assert f"a context of {task} not so many" in capsys.readouterr().err


def test_every_rule_is_measured_at_the_memorys_bytes_too(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    options = ("--policies", "streaming", "ada-h2o", "--equal-bytes", "--passages", 1, "--fractions", 0.5)
    run(monkeypatch, "loss.py", "--model", reader_folder, *options, "--tokens", 2000, "--json", file)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    own = [row for row in rows if row["policy"] == "namm"]
    for policy in ("streaming", "ada-h2o"):
        equal = [row for row in rows if row["policy"] == policy and row.get("equal") == "bytes"]
        assert len(equal) == len(own)
        for mine, its in zip(own, equal, strict=True):
            assert its["kept_fraction"] > mine["kept_fraction"]  # the memory has more state a token
            assert its["held_bytes"] == pytest.approx(mine["held_bytes"], rel=0.08)


def test_equal_bytes_are_met_by_whole_steps_of_memory() -> None:
    row = {"kept_fraction": 0.17, "seen": 1000, "held_bytes": 176}  # 170 tokens in 176 slots of a byte
    assert measuring.at_equal_bytes("h2o", row, 305) == 0.32  # steps of 64: 256 or 320 slots
    assert measuring.at_equal_bytes("h2o", row, 280) == 0.256
    assert measuring.at_equal_bytes("ada-h2o", row, 352) == 0.34  # uneven heads fill what they have as before
    assert measuring.at_equal_bytes("h2o", row, 2000) == 1.0


def test_pass_keys_come_in_every_wording_and_in_a_chat(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(reader_folder, chat)
    (chat / "chat_template.jinja").write_text("<user>{{ messages[0].content }}</><assistant>", encoding="utf-8")
    options = ("--samples", 6, "--policies", "--fractions", 0.5, "--lengths", 300)
    for file, more in (("plain.json", ()), ("chat.json", ("--chat",))):
        run(monkeypatch, "recall.py", "--model", chat, *options, *more, "--json", tmp_path / file)
    plain, chatted = (
        json.loads((tmp_path / file).read_text(encoding="utf-8"))["rows"] for file in ("plain.json", "chat.json")
    )
    assert {row["wording"] for row in plain} == set(WORDINGS)
    assert {row["depth"] for row in plain} == {0.0, 0.2}
    assert all(row["chat"] for row in chatted) and not any("chat" in row for row in plain)
    width = plain[0]["full_bytes"] / 300
    before = {round((two["full_bytes"] - one["full_bytes"]) / width) for one, two in zip(plain, chatted, strict=True)}
    assert before == {len("<user>")}


def test_documents_are_read_once_and_asked_several_questions(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = tmp_path / "data", tmp_path / "found.json"
    data.mkdir()
    leval = [
        {"input": f"Document {number}. " + "many words " * 200, "evaluation": "rouge"}
        | {"instructions": ["Who?", "What of it?", "Why?"], "outputs": ["Ann.", "Words, many.", "So."]}
        for number in range(4)
    ]
    news = [{"context": "some news " * 300, "input": "", "answers": ["Much happened."]}]
    for name, rows in (("meeting_summ", leval), ("multi_news", news)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ("--data", data, "--tasks", "leval/meeting_summ", "longbench/multi_news", "--tokens", 800)
    options += ("--documents", 2, "--questions", 2, "--new-tokens", 3, "--reference", 5)
    run(
        monkeypatch,
        "answers.py",
        "--model",
        reader_folder,
        *options,
        "--every",
        "--policies",
        "h2o",
        "--equal-bytes",
        "--json",
        file,
    )
    found = json.loads(file.read_text(encoding="utf-8"))
    full = [row for row in found["rows"] if row["policy"] == "full"]
    assert [(row["task"], row["document"]) for row in full] == [
        ("leval/meeting_summ", "0/0"),
        ("leval/meeting_summ", "2/0"),
        ("longbench/multi_news", "0"),
    ]
    assert all(row["seen"] < 800 and 0 < row["likelihood"] < 1 for row in full)
    kept = {row["kept_fraction"] for row in found["rows"] if row["policy"] == "h2o" and "equal" not in row}
    assert all(abs(value - 0.25) < 0.01 for value in kept)
    lines = tables.answers_table(found).splitlines()[2:]
    assert len(lines) == 3 * 3 and lines[-1].startswith("| mean of tasks | h2o | 3 |")
    assert lines[0].endswith("| 1.00 ± 0.00 |  |") and render.origin(found).count("weights") == 2
    run(monkeypatch, "answers.py", "--model", reader_folder, *options, "--policies", "--json", tmp_path / "held.json")
    held = json.loads((tmp_path / "held.json").read_text(encoding="utf-8"))["rows"]
    learned = split_documents([Document(str(n), row["input"], "prose") for n, row in enumerate(leval)], seed=0)["train"]
    asked = {row["document"].split("/")[0] for row in held if row["task"] == "leval/meeting_summ"}
    assert learned and asked and asked.isdisjoint(document.name for document in learned)


def test_budgets_are_measured_on_several_models(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "found.json", tmp_path / "other"
    shutil.copytree(reader_folder, other)
    options = ("--models", reader_folder, other, "--texts", 3, "--tokens", 300, 400, "--aims", 0.5)
    run(monkeypatch, "budgets.py", *options, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert len(found["rows"]) == 2 * 3 and all(300 <= row["tokens"] <= 400 for row in found["rows"])
    assert {row["kind"] for row in found["rows"]} == {"prose", "code"}
    assert len({row["tokens"] for row in found["rows"]}) == 3
    worst = max(abs(row["kept_fraction"] - 0.5) for row in found["rows"])
    assert f"{worst:.3f}" in capsys.readouterr().out
    assert render.origin(found).count("weights") == 3
    assert len(tables.budgets_table(found).splitlines()) == 2 + 2


def test_the_cost_of_a_rehearsal_is_measured(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    run(monkeypatch, "speed.py", "--quick", "--rehearse", "--model", reader_folder, "--json", file)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    kinds = ["full", "streaming", "namm", "namm, in pieces", "namm, rehearsed"]
    assert [row["cache"] for row in rows if "cache" in row] == 2 * kinds
    assert "| 512 | namm, rehearsed | 2 | 0.25" in tables.speed_table({"rows": rows})


def test_a_gpu_is_measured_and_without_one_the_program_can_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the extra 'ragged' is for Linux")
    if not torch.cuda.is_available():
        for options, said in ([], "PyTorch finds none"), (["--device", "cpu"], "on a CPU it can only be tried out"):
            with pytest.raises(SystemExit, match=f"^this benchmark needs a GPU.*{said}"):
                run(monkeypatch, "gpu.py", *options, "--json", tmp_path / "none.json")
        assert not list(tmp_path.iterdir())
    file = tmp_path / "found.json"
    late = "--quick", "--device", "cpu", "--json", file
    run(monkeypatch, "gpu.py", *late, "--seconds", 0)
    assert all(row["left"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"])
    run(monkeypatch, "gpu.py", *late)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert not list(tmp_path.glob("*.journal.jsonl")) and not any("left" in row for row in found["rows"])
    for row in found["rows"]:
        if row["measured"] == "agreement":
            assert row["ragged_float32_error"] < 1e-5 and row["ragged_float32_flips"] == 0
    assert {row["cache"] for row in found["rows"] if row["measured"] == "model"} >= {
        "full",
        "static, graphed",
        "ragged",
    }
    for table in render.agreement_table, render.kernel_table, render.model_table:
        assert "nan" not in table(found) and "not measured" not in table(found)
    assert render.origin(found).count("weights") == 2


def test_what_does_not_fit_a_gpu_or_was_left_is_told() -> None:
    what = {"measured": "model", "model": "random:m", "tokens": 8, "rows": 1, "repeat": 0}
    one = {"fits": True, "decode_seconds": 0.5, "kept_fraction": 1.0, "held_bytes": 2**30}
    rows = [what | {"cache": "full", "fits": False}, what | {"cache": "ragged"} | one]
    rows += [what | {"cache": "late", "left": True}]
    full, ragged, late = render.model_table({"rows": rows}).splitlines()[2:]
    assert full.startswith("| m | 8 | 1 | full | 1 | does not fit |")
    assert ragged.startswith("| m | 8 | 1 | ragged | 1 |  |  | 500.00 |  |  | 1.000 | 1.00 |")
    assert late.startswith("| m | 8 | 1 | late | 1 | not measured |")


def test_launches_are_counted_for_every_engine(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    run(monkeypatch, "speed.py", "--quick", "--engine", "padded", "--model", reader_folder, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {row["engine"] for row in found["rows"] if "cache" in row} == {"padded"}
    counts = {row["launches"]: row for row in found["rows"] if "launches" in row}
    assert counts["padded"]["block"] <= 200 and counts["padded"]["step"] <= 18
    assert counts["full"]["step"] is None and 20 < counts["full"]["step_model"] < 100
    if "ragged" in counts:
        assert counts["ragged"]["block"] <= 15 and counts["ragged"]["step"] <= 4
        assert counts["ragged"]["step_model"] < counts["full"]["step_model"] + 4
    assert render.launches_table(found).splitlines()[-1].startswith("| ragged | 1 | " if "ragged" in counts else "| pa")
    assert "| 512 | namm, in pieces | 2 |" in tables.speed_table(found)


def test_starting_is_measured_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "startup.py", "--quick", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert "`import namm` / `import torch`" in tables.startup_table(found)
    assert "weights" not in render.origin(found)


def test_a_search_starts_every_strategy_alike(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "small.toml"
    config.write_text(
        f'models = ["{reader_folder}"]\nparameters = "scorer"\npopulation = 2\nvalidation = 1\ntest = 1\n'
        '[[stages]]\ntasks = ["pass_key"]\ntokens = [900]\nsamples = 1\ngenerations = 2\n',
        encoding="utf-8",
    )
    out, file = tmp_path / "out", tmp_path / "found.json"
    run(monkeypatch, "search.py", out, "--config", config, "--quick", "--rules", "streaming", "--json", file)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["strategy"] for row in rows] == ["cma", "random"]
    assert rows[0]["start"] == rows[1]["start"]
    assert {(row["candidates"], row["candidate_samples"]) for row in rows} == {(2, 2)}
    judged = [[(one["task"], one["start"]["value"]) for one in row["judged"]] for row in rows]
    assert judged[0] == judged[1] and {task for task, _ in judged[0]} > {"continuation", "ruler/niah_single_3"}
    assert all(one["start"]["kept"] == one["final"]["kept"] for row in rows for one in row["judged"])
    assert learning_tables.search_table({"rows": rows}).splitlines()[-1].startswith("| random | 2 | 1 | 0.25")
    heading, _, first, *_ = learning_tables.beside_rules_table({"rows": rows}).splitlines()
    assert heading == "| search | task | n | start | final | streaming | final less streaming |"
    own = next(one for one in rows[0]["judged"] if one["task"] == "pass_key")
    assert own["own"] and own["streaming"]["kept"] == pytest.approx(0.25, abs=0.02)
    values = [own[name]["value"] for name in ("start", "final", "streaming")]
    values.append(values[1] - values[2])
    assert first == "| cma | pass key, own | 1 | " + " | ".join(f"{value:+.2f}" for value in values) + " |"


def test_a_search_is_told_by_its_gain_on_unseen_tasks_and_its_loss() -> None:
    def row(strategy: str, seed: int, gain: float, rise: float) -> dict[str, Any]:
        def one(model: str, task: str, before: float, after: float) -> dict[str, Any]:
            ends = {"start": {"value": before, "kept": 0.25}, "final": {"value": after, "kept": 0.25}}
            return {"model": model, "task": task} | ends

        judged = [one("a", "x", -1.0, -1.0 + gain), one("a", "x", -1.0, -1.0 + gain), one("a", "y", 0.0, 0.0)]
        judged += [one("b", "x", -1.0, -1.0 + 3 * gain), one("b", "continuation", -0.01, -0.01 - rise)]
        return {"strategy": strategy, "seed": seed, "candidate_samples": 1200, "judged": judged}

    rows = [
        row("cma", 0, 0.12, 0.0),
        row("random", 0, 0.02, 0.02),
        row("cma", 1, 0.3, 0.02),
        row("random", 1, 0.0, 0.02),
    ]
    *_, cma, random = learning_tables.search_table({"rows": rows}).splitlines()
    by_seed, _ = mean_interval([1.75 * 0.12, 1.75 * 0.3])
    assert cma.startswith(f"| cma | 1,200 | 2 | 0.250/0.250 | {by_seed:+.3f} ± ")
    assert "| +0.0100 ± 0.0000 | +0.0200 ± " in cma and "| +0.0300 ± 0.0000 | +0.0200 ± 0.0000 |" in random
    ahead = (1.75 * (0.12 - 0.02) + 1.75 * 0.3) / 2
    assert f"| {ahead:+.3f} ± " in random


def test_a_benchmark_that_was_stopped_goes_on(tmp_path: Path) -> None:
    made = {"model": {"fingerprint": "1"}}
    arguments: Any = measuring.parser("", "found").parse_args(["--json", str(tmp_path / "found.json")])
    first = measuring.Measurements(arguments, made)
    first.row(lambda: {"loss": 1.0}, passage="a")
    with first.journal:
        pass  # stopped
    again = measuring.Measurements(arguments, made)
    assert again.row(lambda: pytest.fail("measured twice"), passage="a") == {"passage": "a", "loss": 1.0}
    with again.journal:
        pass
    other = measuring.Measurements(arguments, {"model": {"fingerprint": "2"}})
    assert other.row(lambda: {"loss": 2.0}, passage="a")["loss"] == 2.0
    other.write()
    assert not list(tmp_path.glob("*.journal.jsonl")) and (tmp_path / "found.json").exists()
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"] == [{"passage": "a", "loss": 2.0}]


def test_rules_of_an_earlier_run_are_not_measured_again(tmp_path: Path) -> None:
    made: dict[str, Any] = {"versions": {"torch": "1"}, "machine": {"processor": "p", "threads": 1, "cores": 1}}
    options = measuring.parser("", "found")
    measuring.add_comparison(options)
    wanted = ["--fractions", "0.25", "--policies", "h2o", "l2", "--json"]

    def compared(out: str, policies: list[str], *more: str) -> tuple[dict[str, Any], list[str]]:
        arguments: Any = options.parse_args([*wanted, str(tmp_path / out), "--policies", *policies, *more])
        measured: list[str] = []

        def measure(policy: str, budget: float | None) -> dict[str, Any]:
            measured.append(policy)
            return {"loss": len(out) + len(policy), "seen": 8, "kept_fraction": 0.25, "held_bytes": 100}

        results = measuring.Measurements(arguments, made)
        results.under_every_policy(measure, {"passage": "a"}, arguments)
        results.write()
        return json.loads((tmp_path / out).read_text(encoding="utf-8")), measured

    first, _ = compared("one.json", ["h2o"])
    second, measured = compared("second.json", ["h2o", "l2"], "--rules-from", str(tmp_path / "one.json"))
    assert measured == ["full", "namm", "l2"]
    assert [row for row in second["rows"] if row["policy"] == "h2o"] == [first["rows"][2]]
    assert second["rules_from"]["command"] == first["command"]
    assert first["command"] in render.origin(second)
    made["versions"] = {"torch": "2"}
    with pytest.raises(SystemExit, match="another versions"):
        compared("third.json", ["h2o"], "--rules-from", str(tmp_path / "one.json"))


def test_what_was_learned_is_compared_by_context() -> None:
    """Two seeds of each learner, three contexts; a base model has one."""
    right = {"base": [[0, 0, 1]], "full": [[1, 0, 1], [0, 0, 1]], "memory": [[1, 1, 1], [1, 0, 1]]}
    rows = [
        {"learned": learned, "seed": seed, "task": "a_task", "number": number, "aim": aim}
        | {"correct": bool(found) and (aim == 0.25 or learned == "full"), "log_probability": -1.0, "kept_fraction": aim}
        for learned, seeds in right.items()
        for seed, own in enumerate(seeds)
        for number, found in enumerate(own)
        for aim in (1.0, 0.25)
    ]
    *_, last = tune_tables.learned_table({"rows": rows}).splitlines()
    _, half = mean_interval([1.0, 0.5, 1.0])
    assert last == f"| memory | 0.250 | 2 | 0.833 ± {half:.3f} | -1.000 ± 0.000 | 0.83 |"
    lines = tune_tables.claims_table({"rows": rows}).splitlines()[2:]
    by_sample, by_seed = mean_interval([0.5, 0.5, 0.0])[1], mean_interval([1 / 3, 1 / 3])[1]
    cells = f"+0.333 ± {by_sample:.3f} | +0.000 ± 0.000 | +0.333 ± {by_seed:.3f} |"
    assert lines[0] == f"| memory at 0.25 | full at 0.25 | {cells}"
    assert lines[1] == f"| memory at 0.25 | full at 1 | {cells}"
    assert lines[2].startswith("| full at 0.25 | base at 0.25 | +0.167")
    asked_twice = [row | {"question": question} for row in rows for question in (0, 1)]
    assert tune_tables.claims_table({"rows": asked_twice}) == tune_tables.claims_table({"rows": rows})
    assert "right (6)" in tune_tables.learned_table({"rows": asked_twice})


def test_steps_of_learning_in_turn_are_compared_with_the_ones_before() -> None:
    right = {("base", 0): [0, 0, 1], ("tuned", 1): [1, 0, 1], ("refined", 1): [1, 1, 1]}
    rows = [
        {"step": step, "turn": turn, "number": number, "aim": 0.25, "correct": bool(found)}
        for (step, turn), own in right.items()
        for number, found in enumerate(own)
    ]
    rows += [row | {"aim": 1.0} for row in rows if row["step"] != "refined"]  # of which no memory changes anything
    half = mean_interval([1.0, 0.0, 0.0])[1]
    lines = tune_tables.turns_table({"rows": rows}).splitlines()[2:]
    assert lines[0] == f"| base | 0.333 ± {half:.3f} |  | 0.333 ± {half:.3f} |  |"
    assert lines[1] == "| tuned 1 " + f"| 0.667 ± {half:.3f} | +0.333 ± {half:.3f} " * 2 + "|"
    assert lines[2] == f"| refined 1 | 1.000 ± 0.000 | +0.333 ± {half:.3f} |  |  |"
