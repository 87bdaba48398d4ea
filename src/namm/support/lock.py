"""One at a time: two runs in one folder would do the work twice and write over each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

PATIENCE, PAUSE = 10.0, 0.05  # seconds


class Held(Protocol):
    """A lock that somebody has."""

    def release(self, force: bool = False) -> None:
        """Let go of it."""


def lock(path: Path) -> FileLock:
    """A lock that is held until it is released or collected; a process that is killed lets go of it as well.

    Raises:
        ValueError: if another holds it.
    """
    found = FileLock(path, thread_local=False)
    try:
        found.acquire(timeout=0)
    except Timeout:
        raise _taken(path) from None
    return found


class SharedLock:
    """A lock that many processes of one or several machines hold together, while `lock` of the same file is refused.

    Args:
        path: of the file, which stays where it is.
        alone: is called while nobody else has the lock, if it is had so.

    Raises:
        ValueError: if one who has it for itself keeps it, or where the system has no such locks.
    """

    def __init__(self, path: Path, alone: Callable[[], None]) -> None:
        if os.name != "posix":
            raise ValueError("several processes can share a folder on POSIX systems only")
        until = time.monotonic() + PATIENCE
        while not self._take(path, alone):
            if time.monotonic() > until:
                raise _taken(path)
            time.sleep(PAUSE)  # another may be here alone for a moment, before it shares

    def _take(self, path: Path, alone: Callable[[], None]) -> bool:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            flock(self._file, LOCK_EX | LOCK_NB)
            alone()
        except BlockingIOError:
            pass
        try:
            flock(self._file, LOCK_SH | LOCK_NB)
            if os.fstat(self._file).st_nlink:  # else its last holder took the file away meanwhile
                return True
        except BlockingIOError:
            pass
        os.close(self._file)
        return False

    def release(self, force: bool = False) -> None:
        """Let go of it; a process that is killed does so as well."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _taken(path: Path) -> ValueError:
    return ValueError(f"another run is at work in {path.parent}: wait until it ends, or name another folder")
