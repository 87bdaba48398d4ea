"""What a GPU makes of the engine `ragged`, in one call: whether it is right, what it takes, and how near its kernels
come to the speed of the memory.

    python benchmarks/gpu.py                          # Qwen2.5-Coder-0.5B, and a Llama of 8B with random weights
    python benchmarks/gpu.py --quick --device cpu     # in Triton's interpreter: whether this program runs, no times

What does not fit into the GPU's memory has a row that says so. Rows that the time would not be enough for are left, and
the same command again goes on with them. Ratios are to transformers' full cache (sdpa and DynamicCache) of the same
repetition; beside it is its StaticCache, a step of which is one CUDA graph. A bandwidth is that of keys and values that
are read, beside what a copy in memory reaches on the same GPU in the same call.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measuring import Measurements, Row, described, parser, surroundings

LENGTHS, BATCHES = [8192, 32768, 131072], [1, 8]
CACHES = ("full", "static, graphed", "ragged", "ragged, graphed")
MODELS = ["qwen2.5-coder-0.5b", "random:meta-llama-3-8b"]


def options() -> argparse.Namespace:
    made = parser(__doc__, "gpu", model=False)
    made.add_argument("--device", default="cuda")
    made.add_argument("--models", nargs="+", default=MODELS, help="names, or random:CONFIGURATION (%(default)s)")
    made.add_argument("--memory", default="universal", help="shipped name, folder or hub id")
    made.add_argument("--kept", type=float, default=0.25, help="aimed at")
    made.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    made.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    made.add_argument("--held", type=int, nargs="+", default=[2048, 8192, 32768], help="tokens a head, of kernels")
    made.add_argument("--steps", type=int, default=32, help="of decoding that are timed")
    made.add_argument("--repeats", type=int, default=3, help="at most, of what is short (%(default)s)")
    made.add_argument("--seconds", type=float, default=540, help="what this call may take (%(default)s)")
    found = made.parse_args()
    if torch.device(found.device).type == "cpu":
        if not found.quick:
            raise SystemExit("this benchmark needs a GPU: on a CPU it can only be tried out, by --quick --device cpu")
        os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined
    elif not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU, and PyTorch finds none: --quick --device cpu tries it out")
    if found.quick:
        found.models, found.lengths, found.batches, found.repeats = ["random:tiny"], [32], [1], 1
        found.held, found.steps = [16], 2
    return found


class Timetable:
    """Rows, as long as there is time for them.

    Attributes:
        left: rows that there was none for.
    """

    def __init__(self, results: Measurements, seconds: float) -> None:
        self.results, self.ends = results, time.monotonic() + seconds
        self.left = 0
        self._known: dict[Any, tuple[float, float]] = {}

    def row(self, measure: Callable[[], Row], kind: Any = None, work: float = 0.0, **what: Any) -> Row:
        """A row; or one that says that it is left.

        Args:
            kind: rows of one kind take times as their `work`, the smaller ones first.
        """
        last = self._known.get(kind)
        expected = 0.0 if last is None or kind is None else last[0] * work / last[1]
        if not self.results.has(**what) and time.monotonic() + expected > self.ends:
            self.left += 1
            found = what | {"left": True}
            self.results.rows.append(found)
        else:
            found = self.results.row(partial(_with_time, measure), **what)
            if kind is not None and found.get("fits"):
                self._known[kind] = found["row_seconds"], work
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in found.items()), flush=True)  # fmt: skip
        return found


def _with_time(measure: Callable[[], Row]) -> Row:
    started = time.monotonic()
    found = measure()
    return found | {"row_seconds": time.monotonic() - started}


def kernels(table: Timetable, memory: Any, arguments: argparse.Namespace, device: torch.device) -> None:
    """Rows of kernels by themselves."""
    import gpu_kernels as own

    shapes = [own.Shape("llama-3-8b", 8, 4, 128), own.Shape("qwen2.5-0.5b", 2, 7, 64)]
    if arguments.quick:
        shapes = [own.Shape("tiny", 1, 2, 16)]
    for case in own.cases(shapes, memory.config.update_interval, arguments.quick):
        for name, policy in own.policies(memory).items():
            if name == "namm" or (
                case.shape == shapes[-1] and case.rows == 1 and (name == "h2o" or not arguments.quick)
            ):
                about = {"softcap": case.softcap, "sinks": case.sinks, "policy": name}
                about |= {} if case.bits is None else {"bits": case.bits}
                measured = partial(own.agreement, case, policy, device)
                table.row(measured, measured="agreement", shape=case.shape.name, rows=case.rows, **about)
    size = 2**20 if arguments.quick else 2**30
    table.row(partial(own.copy_speed, device, size), measured="copy", bytes=size)
    for shape in shapes:
        for held in arguments.held:
            for rows in arguments.batches:
                what = {"shape": shape.name, "tokens": held, "rows": rows}
                given = shape, rows, held, memory, torch.bfloat16, device
                table.row(partial(fitting, own.decoding, *given), measured="decoding", **what)
                table.row(partial(fitting, own.block, *given), measured="block", **what)


def fitting(measure: Callable[..., Row], *given: Any) -> Row:
    """A row, or what says that the device's memory is not enough."""
    try:
        return {"fits": True} | measure(*given)
    except torch.OutOfMemoryError:
        return {"fits": False}
    finally:
        free()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settings(arguments: argparse.Namespace) -> Iterator[tuple[int, int, int]]:
    """Tokens, rows and repetitions, what takes least first."""
    pairs = [(tokens, rows) for tokens in arguments.lengths for rows in arguments.batches]
    for tokens, rows in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        yield tokens, rows, max(1, min(arguments.repeats, 2**17 // (tokens * rows)))


def model_rows(table: Timetable, name: str, memory: Any, arguments: argparse.Namespace, device: torch.device) -> None:
    """Rows of a whole model."""
    import gpu_models as own

    model: Any = None

    def loaded() -> Any:
        nonlocal model
        if model is None:
            model = own.load(name, device)
        return model

    def same() -> Row:
        return own.same_by_graphs(loaded(), memory, arguments.kept, *((20, 4) if arguments.quick else (1000, 300)))

    def measure(run: own.Run) -> Row:
        loaded()
        if (
            run.cache,
            run.rows,
        ) not in warm and device.type == "cuda":  # kernels are compiled in a call that nobody times
            warm.add((run.cache, run.rows))
            shorter = own.Run(run.cache, min(arguments.lengths), run.rows, run.steps)
            own.measure(model, memory, arguments.kept, shorter)
        return own.measure(model, memory, arguments.kept, run)

    warm: set[tuple[str, int]] = set()
    table.row(partial(fitting, same), measured="graphs", model=name)
    for tokens, rows, repeats in settings(arguments):
        for repeat in range(repeats):
            for cache in CACHES:
                run = own.Run(cache, tokens, rows, arguments.steps)
                work = tokens * rows * (1 + tokens / 2**16)
                about = {"model": name, "tokens": tokens, "rows": rows, "cache": cache, "repeat": repeat}
                table.row(partial(fitting, measure, run), (name, cache), work, measured="model", **about)
    model = None
    free()


def main() -> None:
    arguments = options()
    device = torch.device(arguments.device)
    import gpu_kernels
    import gpu_models
    from gpu_tables import gpu_tables

    import namm

    memory = namm.NAMM.from_pretrained(arguments.memory)
    if arguments.quick:
        memory = gpu_kernels.smaller(memory, 16)
    models = []
    for name in arguments.models:
        random = name.startswith(gpu_models.RANDOM)
        own = {"name": name, "fingerprint": "random", "dtype": "bfloat16"}
        models.append(own if random else described(name, gpu_models.load(name, torch.device("cpu"))))
    about = {"name": str(arguments.memory), "fingerprint": memory.fingerprint()}
    results = Measurements(arguments, {"models": models, "memory": about} | surroundings(device))
    table = Timetable(results, arguments.seconds)
    kernels(table, memory, arguments, device)
    for name in arguments.models:
        model_rows(table, name, memory, arguments, device)
    results.write(whole=not table.left)
    print("\n" + "\n".join(gpu_tables({"rows": results.rows})))
    if table.left:
        print(f"{table.left} rows are left for want of time: the same command goes on with them")


if __name__ == "__main__":
    main()
