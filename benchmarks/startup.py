"""What starting costs, in processes of their own, run in turn.

python benchmarks/startup.py [--repeats 7]
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from measuring import Measurements, parser, surroundings

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import namm": ["-c", "import namm"],
    "namm.MemoryCache": ["-c", "import namm; namm.MemoryCache"],
    "transformers.PreTrainedModel": ["-c", "from transformers import PreTrainedModel"],
    "namm --help": ["-m", "namm", "--help"],
    "namm generate --help": ["-m", "namm", "generate", "--help"],
}
COMPARED = ("python -c pass", "import torch", "import namm", "namm --help")  # in the table


def seconds(arguments: list[str]) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    options = parser(__doc__, "startup", model=False)
    options.add_argument("--repeats", type=int, default=7)
    arguments = options.parse_args()
    programs = PROGRAMS
    if arguments.quick:
        arguments.repeats, programs = 1, {name: PROGRAMS[name] for name in COMPARED}
    results = Measurements(arguments, surroundings())
    for program in programs.values() if not arguments.quick else ():
        seconds(program)  # fills the file cache
    for repeat in range(arguments.repeats):
        for name, program in programs.items():
            results.row(partial(seconds, program), program=name, repeat=repeat)
    results.write()


if __name__ == "__main__":
    main()
