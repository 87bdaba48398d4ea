"""Tables are made from the values that were measured, and the documents hold the tables that are made."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import render  # noqa: E402
import tables  # noqa: E402

FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_documents_fit_the_measurements() -> None:
    for path, text in render.documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: make results"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_measurement_says_how_it_came_about(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"bare {name}"))
    script = found["command"].split()[1]
    assert found["command"].startswith("python benchmarks/") and (ROOT / script).is_file()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"]["processor"] and found["machine"]["threads"] >= 1
    assert {"python", "namm", "torch", "transformers"} <= set(found["versions"])
    made_with = [found[part] for part in ("model", "memory") if part in found] + found.get("models", [])
    assert all(re.fullmatch(r"[0-9a-f]{16}", part["fingerprint"]) for part in made_with)
    assert found["rows"]
    assert not any("±" in str(value) or "interval" in name for row in found["rows"] for name, value in row.items())


def loss_rows(rises: list[float], policy: str, *, kept: float = 0.25, held: int = 40) -> list[dict[str, object]]:
    return [
        {"kind": "prose", "passage": f"p{number}", "policy": policy, "aim": 1.0 if policy == "full" else 0.25}
        | {"loss": 3.0 + rise, "kept_fraction": kept, "held_bytes": held, "kv_bytes": 100}
        for number, rise in enumerate(rises)
    ]


@pytest.mark.fault("A6", siblings="the ± of every table in README and cards, which were written down and not computed")
def test_rises_are_paired_and_their_interval_is_students() -> None:
    rows = loss_rows([0.0, 0.5, 1.0], "full", kept=1.0)
    # the full cache's loss differs by passage: 0.1, 0.2 and 0.3 above it
    rows += loss_rows([0.1, 0.7, 1.3], "namm") + loss_rows([0.3, 0.6, 1.4], "h2o", held=30)
    heading, _, *lines = tables.loss_table({"rows": rows}).splitlines()
    assert heading == "| policy | tokens kept | bytes | prose (3) |"
    # mean 0.2, deviation 0.1, t of two degrees of freedom 4.303: 4.303 * 0.1 / sqrt(3); h2o 0.3, 0.1, 0.4
    assert lines == ["| namm | 0.250 | 0.40 | +0.200 ± 0.248 |", "| h2o | 0.250 | 0.30 | +0.267 ± 0.379 (2) |"]
    assert tables.loss_table({"rows": rows}, ["h2o", "tova"], wins=False).splitlines()[2:] == [
        "| h2o | 0.250 | 0.30 | +0.267 ± 0.379 |"
    ]


def test_kinds_and_equal_bytes_have_columns_of_their_own() -> None:
    rows = loss_rows([0.0], "full", kept=1.0) + loss_rows([0.2], "namm") + loss_rows([0.4], "h2o", held=30)
    rows += [row | {"kind": "code", "loss": row["loss"] + (row["policy"] == "h2o")} for row in rows]  # type: ignore[operator]
    rows += [row | {"equal": "bytes", "loss": 3.1, "held_bytes": 40} for row in rows if row["policy"] == "h2o"]
    heading, _, memory, rule = tables.loss_table({"rows": rows}).splitlines()
    assert heading.endswith("| all (2) | prose (1) | code (1) | bytes, equal | all, equal |")
    assert memory == "| namm | 0.250 | 0.40 | +0.200 ± 0.000 | +0.200 | +0.200 |  |  |"
    assert rule == "| h2o | 0.250 | 0.30 | +0.900 ± 6.353 (2) | +0.400 (1) | +1.400 (1) | 0.40 | +0.100 ± 0.000 (0) |"


@pytest.mark.fault("26", siblings="decode as well as prefill; the first repetition, which compiles kernels")
def test_speed_is_the_median_of_ratios_within_a_repetition_and_the_range_seen() -> None:
    def rows(cache: str, prefill: list[float], decode: list[float]) -> list[dict[str, object]]:
        return [
            {"tokens": 1024, "cache": cache, "repeat": n, "prefill_seconds": p, "decode_seconds": d}
            | {"kept_fraction": 0.25, "held_bytes": 100 if cache == "full" else 40}
            for n, (p, d) in enumerate(zip(prefill, decode, strict=True))
        ]

    found = {"rows": rows("full", [1, 2, 10], [0.1, 0.1, 0.2]) + rows("namm", [1.5, 2, 12], [0.05, 0.1, 0.1])}
    line = tables.speed_table(found).splitlines()[-1]
    # 1.5, 1 and 1.2, not the median 2 over the median 2
    assert line.split(" | ")[5] == "1.20 (1.00 to 1.50)"
    assert line.split(" | ")[7] == "0.50 (0.50 to 1.00)"
    assert line.endswith("| 0.40 |")


def recall_rows(policy: str, right: list[bool], **more: object) -> list[dict[str, object]]:
    return [
        {"task": "pass_key", "tokens": 1024, "seed": seed, "policy": policy, "aim": 1.0 if policy == "full" else 0.5}
        | {"kept_fraction": 0.5, "log_probability": -0.25 - seed, "held_bytes": 3, "full_bytes": 4}
        | {"correct": value, "wording": "log" if seed else "table"}
        | more
        for seed, value in enumerate(right)
    ]


def test_right_answers_are_counted_and_compared_with_the_full_cache() -> None:
    found = {"rows": recall_rows("full", [True, True]) + recall_rows("namm", [True, False])}
    # deviation 0.7071, t of one degree of freedom 12.706
    expected = "| pass key | 1,024 | namm | 0.500 | 0.75 | 1 of 2 | 0.50 ± 6.35 | -0.75 ± 6.35 |"
    assert tables.recall_table(found).splitlines()[-1] == expected
    assert tables.wordings_table(found).splitlines()[-1] == "| namm | 0.500 | 1 of 1 | 0 of 1 |"
    found["rows"] += recall_rows("namm", [True, True], equal="bytes", held_bytes=4)
    assert tables.recall_table(found).splitlines()[-1] == f"{expected} 1.00 | 1.00 ± 0.00 |"
    assert tables.wordings_table(found).splitlines()[-1] == "| namm | 0.500 | 1 of 1 | 0 of 1 |"


def test_long_answers_are_compared_token_by_token() -> None:
    rows = recall_rows("full", [False], task="repeated_code", right_tokens=0.8)
    rows += recall_rows("namm", [False], task="repeated_code", right_tokens=0.6)
    assert "| 0 of 1 | 0.75 |" in tables.recall_table({"rows": rows}).splitlines()[-1]


def test_answers_are_shares_of_the_full_caches_by_task_and_over_tasks() -> None:
    def rows(task: str, policy: str, scores: list[float]) -> list[dict[str, object]]:
        return [
            {"task": task, "document": str(number), "policy": policy, "aim": 1.0 if policy == "full" else 0.25}
            | {"score": score, "likelihood": score / 2, "kept_fraction": 0.25, "held_bytes": 3, "full_bytes": 10}
            for number, score in enumerate(scores)
        ]

    found = {
        "rows": rows("a", "full", [0.4, 0.6])
        + rows("a", "namm", [0.4, 0.5])
        + rows("b", "full", [1.0, 1.0])
        + rows("b", "namm", [1.0, 1.0])
        + rows("c", "full", [0.0, 0.0])
        + rows("c", "namm", [0.0, 0.1])
    }
    lines = tables.answers_table(found).splitlines()[2:]
    # deviation 0.0707, t of one degree of freedom 12.706; the ratio's of (0.4 - 0.9 * 0.4, 0.5 - 0.9 * 0.6) / 0.5
    assert lines[1] == "| a | namm | 2 | 0.250 | 0.30 | 0.450 ± 0.635 | 0.90 ± 1.02 | 0.90 ± 1.02 |"
    # 0.9 and 1; nothing can be said of c
    assert lines[-1] == "| mean of tasks | namm | 6 | 0.250 | 0.30 |  | 0.950 ± 0.635 (2) | 0.950 ± 0.635 (2) |"


def test_budgets_that_miss_are_counted_and_the_furthest_named() -> None:
    rows = [
        {"model": "m", "text": f"t{number}", "tokens": 1000 + number, "aim": 0.25, "kept_fraction": kept}
        for number, kept in enumerate((0.24, 0.26, 0.29))
    ]
    line = tables.budgets_table({"rows": rows}).splitlines()[-1]
    assert line == "| m | 0.25 | 3 | 1,000 to 1,002 | 0.263 ± 0.063 | 0.240 to 0.290 | 1 | t2, 1,002 tokens |"


def test_every_file_of_a_benchmark_has_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "loss.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    for name, model in (("loss-gemma", "gemma"), ("loss", "smollm2"), ("losses", "none")):
        changed = found | {"model": found["model"] | {"name": model}}
        (tmp_path / f"{name}.json").write_text(json.dumps(changed), encoding="utf-8")
    titles = [line for line in render.page().splitlines() if line.startswith("## ")]
    assert [title.partition(": ")[2].partition(",")[0] for title in titles] == ["smollm2", "gemma"]


def test_a_table_goes_between_its_marks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- loss: begin, written by make results -->", "<!-- loss: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    assert render.between_marks(page, "loss", "new\n") == f"before\n{begin}\nnew\n{end}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the marks"):
        render.between_marks(page, "loss", "new\n")
