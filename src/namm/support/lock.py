"""One at a time: two runs in one folder would do the work twice and write over each other."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def lock(path: Path) -> FileLock:
    """A lock that is held until it is released or collected; a process that is killed lets go of it as well.

    Raises:
        ValueError: if another holds it.
    """
    found = FileLock(path, thread_local=False)
    try:
        found.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run is at work in {path.parent}: wait until it ends, or name another folder"
        ) from None
    return found
