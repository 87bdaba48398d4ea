"""Every task by its name, and suites of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from namm.evaluation.benchmarks.base import Task
from namm.evaluation.benchmarks.choubun import CHOUBUN
from namm.evaluation.benchmarks.files import file_task
from namm.evaluation.benchmarks.generated import GENERATED
from namm.evaluation.benchmarks.infinitebench import INFINITEBENCH
from namm.evaluation.benchmarks.leval import LEVAL
from namm.evaluation.benchmarks.longbench import LONGBENCH
from namm.evaluation.benchmarks.needle import NEEDLE
from namm.evaluation.benchmarks.ruler import RULER

TASKS: Mapping[str, Task] = {
    **GENERATED,
    **NEEDLE,
    **RULER,
    **LONGBENCH,
    **CHOUBUN,
    **LEVAL,
    **INFINITEBENCH,
}
SUITES: Mapping[str, tuple[str, ...]] = {
    # made on the spot, with nothing but this package: what a laptop can do in half an hour
    "offline": (
        "continuation",
        "repeated_code",
        "pass_key",
        "multi_key",
        "ruler/niah_single_2",
        "ruler/niah_multikey_1",
    ),
    "longbench": tuple(LONGBENCH),
    "choubun": tuple(CHOUBUN),
    "leval": tuple(LEVAL),
    "infinitebench": tuple(INFINITEBENCH),
    "ruler": tuple(RULER),
    "needle": tuple(NEEDLE),
}


def find_tasks(names: Sequence[str], metric: str = "f1") -> list[Task]:
    """Tasks by their names, suites by theirs, and ``file:PATH.jsonl`` in the format of LongBench.

    Args:
        metric: of the files.

    Raises:
        ValueError: for a name that is none of these; it says which are near.
    """
    found: list[Task] = []
    for name in names:
        if name in SUITES:
            found += [TASKS[task] for task in SUITES[name]]
        elif name in TASKS:
            found.append(TASKS[name])
        elif name.startswith("file:"):
            found.append(file_task(name.removeprefix("file:"), metric))
        else:
            near = difflib.get_close_matches(name, [*SUITES, *TASKS], 3, 0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"unknown task {name!r}: {hint}`namm eval --list` prints all tasks and suites")
    return list(dict.fromkeys(found))
