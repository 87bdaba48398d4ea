"""Rows of a benchmark's file: from the user's folder, else from the Hugging Face hub."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download

from namm.evaluation.benchmarks.base import Request, SkippedTaskError, local_rows, rows_of
from namm.support.extras import need
from namm.tasks.rows import Row


def file_or_hub_rows(request: Request, task: str, dataset: str, split: str = "test") -> Iterator[Row]:
    """Rows of ``<task>.jsonl`` in the request's folder, else of a dataset of the hub.

    Raises:
        SkippedTaskError: if neither has it.
        ValueError: for an empty file or a line that is no JSON object.
    """
    rows = local_rows(request.data, [f"{task}.jsonl"]) if request.data else None
    return rows or hub_rows(dataset, task, split)


def hub_rows(dataset: str, task: str, split: str) -> Iterator[Row]:
    """Rows of a dataset's ``<task>.jsonl``, plain or in its ``data.zip``, else of its configuration of that name.

    The files come first because `datasets` no longer runs the loading scripts that LongBench and L-Eval have, and wants
    the same columns in all files, which InfiniteBench lacks.

    Raises:
        SkippedTaskError: if it can't be had.
    """
    try:
        wanted = [f"{task}.jsonl", f"**/{task}.jsonl", "data.zip"]
        folder = Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=wanted))
        return local_rows(folder, [f"{task}.jsonl"]) or _zipped_rows(folder, task) or _configured(dataset, task, split)
    except Exception as error:  # the hub raises many kinds; the user needs one sentence
        reason = " ".join(str(error).split())
        raise SkippedTaskError(f"could not load {dataset} ({reason}); put {task}.jsonl in --data FOLDER") from error


def _zipped_rows(folder: Path, task: str) -> Iterator[Row] | None:
    for archive in folder.glob("data.zip"):
        for name in zipfile.ZipFile(archive).namelist():
            if Path(name).name == f"{task}.jsonl":
                return rows_of(zipfile.Path(archive, name))
    return None


def _configured(dataset: str, task: str, split: str) -> Iterator[Row]:
    rows = need("datasets", "eval").load_dataset(dataset, task, split=split)
    return ((f"{dataset}[{number}]", row) for number, row in enumerate(rows))
