"""Time and bytes of a step of learning under a memory, beside one on the full cache.

    python benchmarks/tune_step.py                               # SmolLM2 at 2k, 4k and 8k tokens
    python benchmarks/tune_step.py --lengths 1024 2048 --repeats 1

A step is `namm tune --objective answers` with one text: forward and backward, adapters of rank 16. The full cache is
one call without a cache (sdpa), its layers checkpointed. Under a memory the text goes in by pieces, each of which is
computed again in the backward pass, and where it says so the layers within it once more; "full, in pieces" does as
much, and nothing is forgotten. Each repetition takes all kinds in turn; the first only warms up (what is compiled for
every shape it meets stays in memory, and would be counted), those that follow are timed, and the last counts the bytes
that a step adds to what the process (on a GPU: the device) held before: at most, and when the forward pass is done.
They are Linux's own count, of an allocator that is told to give back at once.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from measuring import Measurements, Row, Setup, load, made_with, parser
from rich.progress import track

from namm.learning import Text, TuneConfig
from namm.learning.tuning.adapters import adapted
from namm.learning.tuning.loss import text_loss
from namm.policies import Full, NAMMPolicy, Policy
from namm.tasks import packaged_prose
from namm.tasks.encode import encode

ANSWER = 64  # tokens that are predicted
FULL, IN_PIECES, LAYERS_TOO = "full", "full, in pieces", "namm, layers too"
WARM_UP, BYTES = -1, 0  # repetitions that are not timed
MMAP_THRESHOLD = -3  # of mallopt
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Bytes:
    """What the process, or the device, holds beyond what it held when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        elif not CLEAR.exists():
            raise SystemExit("the bytes of a step are counted on Linux, or on a CUDA device")
        self._before = self._held()
        if device.type != "cuda":
            CLEAR.write_text("5")  # forgets the peak

    def now(self) -> int:
        return self._held() - self._before

    def peak(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self._before
        return _status("VmHWM") - self._before

    def _held(self) -> int:
        gc.collect()
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        with suppress(OSError, AttributeError):  # of another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")


@contextmanager
def giving_back() -> Iterator[None]:
    """Within it the memory of every large tensor goes back when it is freed, which takes longer."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**25)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.M)
    assert found is not None, f"{STATUS} has no {name}"
    return 1024 * int(found[1])


@dataclass(frozen=True)
class Kind:
    """What a step is taken under: a policy, or the full cache (None); and whether layers are checkpointed."""

    policy: Callable[[], Policy] | None
    layers: bool

    @contextmanager
    def loss(self, setup: Setup, text: Text, piece: int) -> Iterator[torch.Tensor]:
        """Of a text; within it its backward pass is to come."""
        if self.layers:
            setup.model.activation_checkpointing_enable()
        try:
            yield text_loss(setup.model, text, None if self.policy is None else self.policy(), piece)
        finally:
            setup.model.zero_grad()
            if self.layers:
                setup.model.activation_checkpointing_disable()


def measure_bytes(setup: Setup, text: Text, kind: Kind, piece: int) -> Row:
    """Of one step."""
    with giving_back():
        counted = Bytes(setup.model.device)
        with kind.loss(setup, text, piece) as loss:
            held = counted.now()
            loss.backward()
            return {"held_bytes": held, "peak_bytes": counted.peak(), "loss": loss.item()}


def measure_seconds(setup: Setup, text: Text, kind: Kind, piece: int) -> Row:
    """Of one step."""
    started, processor = time.perf_counter(), time.process_time()
    with kind.loss(setup, text, piece) as loss:
        loss.backward()
        if setup.model.device.type == "cuda":
            torch.cuda.synchronize(setup.model.device)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "processor_seconds": time.process_time() - processor, "loss": loss.item()}


def main() -> None:
    options = parser(__doc__, "tune_step")
    options.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    options.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.125])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--piece", type=int, default=512)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.fractions, arguments.repeats = [600], [0.25], 1
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    words = "\n\n".join(document.text for document in packaged_prose("heldout"))
    ids = encode(setup.tokenizer, words)[0]
    kinds = {FULL: Kind(None, True), IN_PIECES: Kind(Full, False)}
    for kept in arguments.fractions:
        kinds[f"namm {kept}"] = Kind(partial(NAMMPolicy, setup.memory, kept=kept), False)
    kinds[LAYERS_TOO] = Kind(partial(NAMMPolicy, setup.memory, kept=arguments.fractions[0]), True)
    with adapted(setup.model, TuneConfig()):
        turns = [WARM_UP, *range(1, arguments.repeats + 1), BYTES]
        for repeat, length in track(list(product(turns, arguments.lengths)), "steps"):
            own = ids.repeat(-(-length // len(ids)))[:length]
            text = Text(own[:-ANSWER], own[-ANSWER:], ANSWER)
            for name, kind in kinds.items():
                if repeat == WARM_UP:
                    measure_seconds(setup, text, kind, arguments.piece)
                    continue
                measure = measure_bytes if repeat == BYTES else measure_seconds
                what = {"kind": name, "tokens": length, "piece": arguments.piece, "repeat": repeat}
                results.row(partial(measure, setup, text, kind, arguments.piece), **what)
    results.write()


if __name__ == "__main__":
    main()
