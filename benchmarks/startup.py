"""What starting costs, in processes of their own, run in turn: medians and the range seen.

python benchmarks/startup.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import namm": ["-c", "import namm"],
    "namm.MemoryCache": ["-c", "import namm; namm.MemoryCache"],
    "transformers.PreTrainedModel": ["-c", "from transformers import PreTrainedModel"],
    "namm --help": ["-m", "namm", "--help"],
    "namm generate --help": ["-m", "namm", "generate", "--help"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repeat in range(arguments.repeats + 1):
        for name, program in PROGRAMS.items():
            spent = seconds(program)
            if repeat:  # the first only fills the file cache
                taken[name].append(spent)
    for name, times in taken.items():
        print(f"{name:30} {statistics.median(times):6.3f} s ({min(times):.3f} to {max(times):.3f})")

    def difference(one: str, other: str) -> float:
        return statistics.median(a - b for a, b in zip(taken[one], taken[other], strict=True))

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))

    print(f"import namm / import torch: {ratio('import namm', 'import torch'):.3f} (at most 1.15)")
    print(
        "namm.MemoryCache / transformers.PreTrainedModel: "
        f"{ratio('namm.MemoryCache', 'transformers.PreTrainedModel'):.3f}"
    )
    for name in ("namm --help", "namm generate --help"):
        print(f"{name} - python -c pass: {difference(name, 'python -c pass'):.3f} s (at most 1)")


if __name__ == "__main__":
    main()
