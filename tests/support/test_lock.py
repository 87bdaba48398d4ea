"""Who may be in a folder beside whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import namm
from namm.support import lock as locks
from namm.support.lock import SharedLock, lock

OTHER = """
import sys, time
from pathlib import Path
from namm.support.lock import SharedLock
held = SharedLock(Path(sys.argv[1]), lambda: print("alone"))
print("shared", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)


def test_several_share_what_none_of_them_has_alone(tmp_path: Path) -> None:
    alone: list[str] = []
    first = SharedLock(tmp_path / "lock", lambda: alone.append("first"))
    second = SharedLock(tmp_path / "lock", lambda: alone.append("second"))
    assert alone == ["first"]
    first.release()
    with pytest.raises(ValueError, match="another run is at work"):
        lock(tmp_path / "lock")
    second.release()
    own = lock(tmp_path / "lock")
    with pytest.raises(ValueError, match="another run is at work"):
        SharedLock(tmp_path / "lock", lambda: alone.append("third"))
    own.release()
    SharedLock(tmp_path / "lock", lambda: alone.append("fourth")).release()
    assert alone == ["first", "fourth"]


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(namm.__file__).parents[1])}
    command = [sys.executable, "-c", OTHER, str(tmp_path / "lock")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert [other.stdout.readline(), other.stdout.readline()] == ["alone\n", "shared\n"]
        with pytest.raises(ValueError, match="another run is at work"):
            lock(tmp_path / "lock")
        other.send_signal(signal.SIGKILL)
    lock(tmp_path / "lock").release()
