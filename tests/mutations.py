"""Break the library in one place at a time, and see that a test notices: ``make mutations``.

    python tests/mutations.py [PART OF A NAME ...] [--jobs N]

Every mutation is made in a copy of the sources, on which its tests run. It is caught where they fail; one
that survives, or whose old text is not found exactly once, makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutants import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds, after which a mutation is taken to have made its tests endless
PASSED, FAILED = 0, 1  # exit codes of pytest; all others say that it could not run the tests


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: "caught", "caught (endless)", "survived", or what was wrong with it; and seconds."""

    mutation: Mutation
    verdict: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.verdict.startswith("caught")


@contextmanager
def copied_sources() -> Iterator[Path]:
    """A folder with a copy of the sources, to be put on the path."""
    with tempfile.TemporaryDirectory(prefix="namm-mutant-") as folder:
        shutil.copytree(ROOT / "src" / "namm", Path(folder, "namm"), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def run_tests(sources: Path, tests: Sequence[str], expected: Sequence[int] = (PASSED, FAILED)) -> int | None:
    """Pytest's exit code, None if it took longer than `PATIENCE`; what it says is shown where that is not expected."""
    environment = os.environ | {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in expected:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def try_out(mutation: Mutation) -> Outcome:
    """Make a mutation and run its tests."""
    started = time.monotonic()

    def outcome(verdict: str) -> Outcome:
        return Outcome(mutation, verdict, time.monotonic() - started)

    with copied_sources() as sources:
        file = sources / "namm" / mutation.file
        if not file.is_file():
            return outcome("NO SUCH FILE")
        text = file.read_text(encoding="utf-8")
        for old, new in ((mutation.old, mutation.new), *mutation.also):
            if (found := text.count(old)) != 1:
                return outcome(f"OLD TEXT FOUND {found} TIMES: {old.strip()[:40]}")
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
        verdicts = {PASSED: "SURVIVED", FAILED: "caught", None: "caught (endless)"}
        return outcome(verdicts.get(code := run_tests(sources, mutation.tests), f"PYTEST EXITED WITH {code}"))


def main() -> int:
    """Try out all mutations, or those whose names contain an argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the names of mutations")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at once")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.names or any(part in m.name for part in arguments.names)]
    if not chosen:
        parser.error(f"no mutation is called so: {', '.join(m.name for m in MUTATIONS)}")
    with copied_sources() as sources:
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        if run_tests(sources, tests, [PASSED]) != PASSED:
            print("the tests do not pass without any mutation, or took too long: mend them first", file=sys.stderr)
            return 2
    print(f"| {'mutation':66} | verdict | seconds |\n| {'-' * 66} | --- | --- |", flush=True)
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(try_out, chosen):
            outcomes.append(outcome)
            print(f"| {outcome.mutation.name:66} | {outcome.verdict} | {outcome.seconds:.0f} |", flush=True)
    caught = sum(outcome.good for outcome in outcomes)
    print(f"\n{caught} of {len(outcomes)} caught")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
