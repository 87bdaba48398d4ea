"""What long runs share: whose folder it is, what it was begun with, who is at work in it, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from namm.support.files import read_json, strict_json, write_atomically
from namm.support.lock import lock
from namm.support.version import VERSION

RUN_FILE = "run.json"  # what a run's folder is known by


@dataclass(frozen=True)
class Progress:
    """What is being done, how much of it is done and how much there is, and a note."""

    stage: str
    done: int
    total: int
    note: str = ""


def check_output(folder: Path, *, inputs: Sequence[str | Path | None] = ()) -> None:
    """Refuse to write where something would be lost; call it before anything is loaded.

    Args:
        inputs: what the run reads; None, and names that are no path on this machine (of the hub or the package), are
            passed over.

    Raises:
        ValueError: if the folder is, contains or lies in an input, is a file, or holds files that no run of this
            version wrote. Hidden files are nobody's.
    """
    own = folder.expanduser().resolve()
    for path in _existing(inputs):
        there = path.resolve()
        if own == there or own in there.parents or there in own.parents:
            relation = "is" if own == there else "contains" if own in there.parents else "lies in"
            raise ValueError(f"the output {folder} {relation} the input {path}: name another folder")
    if not own.exists():
        return
    if not own.is_dir():
        raise ValueError(f"the output {folder} is a file: name a folder")
    if (own / RUN_FILE).exists():
        _begun(own)
    elif foreign := sorted(file.name for file in own.iterdir() if not _passed_over(file)):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"{folder} holds what no run of namm {VERSION} wrote ({', '.join(foreign[:3])}{more}): "
            "name a new or empty folder"
        )


def check_output_file(path: Path, inputs: Sequence[str | Path | None] = ()) -> None:
    """Raises ValueError if the file to be written is one of the inputs, lies in one, or is a folder."""
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder: name a file")
    own = path.expanduser().resolve()
    for other in _existing(inputs):
        if own == other.resolve() or other.resolve() in own.parents or (own.exists() and own.samefile(other)):
            raise ValueError(f"the output {path} would be written over the input {other}: name another file")


@contextmanager
def claim(folder: Path, kind: str, depends: Mapping[str, object]) -> Iterator[None]:
    """Within it the folder belongs to this run alone, and to all that it depends on: what it finds there is its own.

    What was claimed stays claimed as soon as there is a result; a run that ended before its first leaves no claim.

    Args:
        kind: of run, such as ``"distillation"``.
        depends: by name all that results depend on, as JSON values; of weights and texts fingerprints. The library's
            version is added.

    Raises:
        ValueError: if the folder holds a run of another kind, version or dependence, or another run is at work in it.
    """
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".run.lock"):
        wanted = json.loads(strict_json({"run": kind, "version": VERSION} | dict(depends)))
        if (folder / RUN_FILE).exists() and _has_results(folder):
            found = _begun(folder)
            other = [name.replace("_", " ") for name in found | wanted if found.get(name) != wanted.get(name)]
            if other:
                raise ValueError(
                    f"{folder} holds the work of another {found['run']}, which differs in: {', '.join(other)}; "
                    "name another folder, or delete it"
                )
        write_atomically(folder / RUN_FILE, strict_json(wanted, indent=1) + "\n")
        yield


def _begun(folder: Path) -> dict[str, object]:
    """What the folder's run depends on; ValueError if another version began it."""
    found = read_json(folder / RUN_FILE)
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str) or "run" not in found:
        raise ValueError(f"{folder / RUN_FILE} was not written by a run of namm: name another folder")
    if version != VERSION:
        raise ValueError(
            f"{folder} holds the work of namm {version} ({found['run']}), which namm {VERSION} can't go on with: "
            "name another folder, or delete it"
        )
    return found


def _existing(inputs: Sequence[str | Path | None]) -> list[Path]:
    paths = [Path(path).expanduser() for path in inputs if path and str(path)]
    return [path for path in paths if path.exists()]


def _passed_over(file: Path) -> bool:
    return file.name.startswith(".") or file.suffix == ".partial"


def _has_results(folder: Path) -> bool:
    return any(
        file.is_file() and file.stat().st_size and file.name != RUN_FILE and not _passed_over(file)
        for file in folder.rglob("*")
    )
