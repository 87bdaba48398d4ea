"""Fuzz the readers of files, guided by the branches they take: ``make fuzz SECONDS=60``.

    python tests/fuzz/fuzz.py [--seconds 60] [READER ...]

Every reader of `readers.py` has its share of the time. What makes one raise something else than its own errors, or
change the file, is written to a folder that is named, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

LONGEST = 4096  # bytes of a file


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["namm", "tomllib", "json"]):
        from readers import READERS

    atheris.Setup([sys.argv[0], *arguments], READERS[name][0])
    atheris.Fuzz()


def names_of_readers() -> list[str]:
    """Without loading them here: each process loads its own, instrumented."""
    program = "import readers; print(*readers.READERS)"
    return subprocess.check_output([sys.executable, "-c", program], cwd=Path(__file__).parent, text=True).split()


def run(name: str, seconds: int, found: Path) -> bool:
    """Fuzz one reader in a process of its own, from the files that it takes; whether it came through."""
    corpus = found / f"corpus-{name}"
    corpus.mkdir()
    program = "import readers, sys, pathlib\nfor n, c in enumerate(readers.READERS[sys.argv[1]][1]):\n"
    program += "    pathlib.Path(sys.argv[2], f'seed-{n}').write_bytes(c)"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", program, name, str(corpus)], cwd=here, check=True)
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
    options += ["-print_final_stats=1", f"-artifact_prefix={found}/{name}-", str(corpus)]
    command = [sys.executable, str(Path(__file__)), "--one", name, *options]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    counts = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
    covered = [part.split()[0] for line in lines for part in line.split("cov: ")[1:]]
    print(
        f"{name:15} {'came through' if done.returncode == 0 else 'FAILED'}: {counts[-1] if counts else '?'} files, "
        f"{covered[-1] if covered else '?'} branches",
        flush=True,
    )
    if done.returncode:
        first = next(
            (n for n, line in enumerate(lines) if "Uncaught Python exception" in line), max(0, len(lines) - 40)
        )
        print("\n".join(lines[first:]), flush=True)
    return done.returncode == 0


def main() -> int:
    """Fuzz the readers named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="of all readers together")
    arguments = parser.parse_args()
    names = names_of_readers()
    if unknown := set(arguments.readers) - set(names):
        parser.error(f"no reader {', '.join(sorted(unknown))}: {', '.join(names)}")
    chosen = arguments.readers or names
    found = Path(tempfile.mkdtemp(prefix="namm-found-"))
    came_through = [run(name, max(1, arguments.seconds // len(chosen)), found) for name in chosen]
    if not all(came_through):
        print(f"the files that did it are in {found}")
    return 0 if all(came_through) else 1


if __name__ == "__main__":
    if "--one" in sys.argv[1:2]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
