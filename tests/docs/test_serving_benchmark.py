"""The benchmark of the server: what is asked, seen and counted."""

from __future__ import annotations

import http.server
import json
import runpy
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import clients  # noqa: E402
import render  # noqa: E402
import serving  # noqa: E402
import serving_tables  # noqa: E402


def test_every_answer_of_a_server_under_load_is_checked(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    command = ["serving.py", "--quick", "--model", reader_folder, "--bits", 4, "--queue", 3, "--json", file]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    runpy.run_path(str(BENCHMARKS / "serving.py"), run_name="__main__")
    found = json.loads(file.read_text(encoding="utf-8"))
    (row,) = found["rows"]
    assert row["answered"] == len(row["whole_seconds"]) >= max(3, row["answered_within"])
    assert row["wrong"] == row["refused"] == 0 and row["failed"] == []
    assert row["after"]["held"] == row["documents_bytes"] > row["left"]["held"] == row["left"]["reserved"] == 0
    assert max(row["samples"]["held"]) <= max(row["samples"]["reserved"]) <= row["memory"] == 2 * row["demand"]
    line = serving_tables.checked_table(found).splitlines()[-1]
    assert line.startswith(f"| 3 | 8 | {row['answered']} | 0 | 0 | 0 | ") and line.endswith(" | 0.0 |")
    for table in (serving_tables.serving_table, serving_tables.minutes_table):
        lines = table(found).splitlines()
        assert len(lines) > 2 and "nan" not in lines[-1]
    assert render.origin(found).count("weights") == 2


def test_an_answer_that_is_not_a_single_runs_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = [clients.Answer(number, text, 3, 1.0, 0.5, 1.0) for number, text in ((0, "a"), (1, "b"), (1, "c"))]
    load = SimpleNamespace(run=lambda: None, answers=answers, refused=0, failed=[], samples={}, took=1.0)
    monkeypatch.setattr(serving, "Load", lambda *given: load)
    monkeypatch.setattr(serving, "sample", lambda http: {})
    monkeypatch.setattr(serving, "served", lambda *given: nullcontext("http://nowhere"))
    (tmp_path / "documents").mkdir()
    arguments = SimpleNamespace(loads=[serving.Plan(4, 1, 2.0, 10)])
    rest = None, arguments, None, tmp_path / "documents", {}, [("", {}), ("", {})], []
    work = serving.Work(*rest, needed=[100, 300], wanted=["a", "b"])
    row = serving.measure(work, serving.Plan(2, 1, 2.0, 2))
    assert row["wrong"] == 1 and row["answered"] == 3
    assert (row["demand"], row["memory"]) == (400, 400), "of two clients, and half of what four need"
    with pytest.raises(SystemExit, match="less than one request needs"):
        work.budget(10)


def test_a_client_that_is_sent_away_comes_again_when_it_was_told() -> None:
    """And the wait counts as a part of its answer's time."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(429 if len(asked) == 1 else 200)
            self.send_header("retry-after", "0.25")
            self.end_headers()
            if len(asked) > 1:
                events = {"choices": [{"text": "yes"}]}, {"choices": [], "usage": {"completion_tokens": 1}}
                self.wfile.write("".join(f"data: {json.dumps(event)}\n\n" for event in events).encode())

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"# HELP\nnamm_held_bytes 7.0\n")

        def log_message(self, *given: Any) -> None:
            """To nobody."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        load = clients.Load(f"http://127.0.0.1:{server.server_port}", [("/v1/completions", {"prompt": "a"})], 1, 0.1)
        load.run()
        server.shutdown()
        thread.join()
    (answer,) = load.answers
    assert (answer.text, answer.tokens, load.refused, load.failed) == ("yes", 1, 1, [])
    assert answer.whole >= answer.first >= 0.25 and len(asked) == 2 and asked[0] == asked[1]
    assert set(load.samples["held"]) == {7.0}
