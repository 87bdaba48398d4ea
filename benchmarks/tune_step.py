"""Time and bytes of a step of learning under a memory, beside one on the full cache.

    python benchmarks/tune_step.py                               # SmolLM2 at 2k, 4k and 8k tokens
    python benchmarks/tune_step.py --lengths 1024 2048 --repeats 1

A step is `namm tune --objective answers` with one text: forward and backward, adapters of rank 16. The full cache is
one call without a cache (sdpa), its layers checkpointed. Under a memory the text goes in by pieces, each of which is
computed again in the backward pass, and within it the layers once more (`--checkpoint-layers`); "pieces only" leaves
that out. Each repetition takes all kinds in turn: the first counts the bytes of all tensors that a step adds to what
the model holds, at most and when the forward pass is done (by watching every operation, which takes time), those that
follow are timed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from measuring import Measurements, Row, Setup, load, made_with, parser
from rich.progress import track
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from namm.learning import Text, TuneConfig
from namm.learning.tuning.adapters import adapted
from namm.learning.tuning.loss import text_loss
from namm.policies import Full, NAMMPolicy, Policy
from namm.tasks import packaged_prose
from namm.tasks.encode import encode

ANSWER = 64  # tokens that are predicted
FULL, IN_PIECES = "full", "full, in pieces"
BYTES = 0  # the repetition that is not timed


class Bytes(TorchDispatchMode):
    """Within it the bytes of all tensors that operations make and nothing has freed.

    Attributes:
        now: so many.
        peak: at most.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        there = [*model.parameters(), *model.buffers()]
        self._known: dict[int, Any] = {own.untyped_storage()._cdata: own for own in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return

        def freed(_: Any) -> None:
            del self._known[place]
            self.now -= size

        self._known[place] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


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
    with Bytes(setup.model) as counted, kind.loss(setup, text, piece) as loss:
        held = counted.now
        loss.backward()
        return {"held_bytes": held, "peak_bytes": counted.peak, "loss": loss.item()}


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
    options.add_argument("--piece", type=int, default=256)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.fractions, arguments.repeats = [600], [0.25], 1
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    words = "\n\n".join(document.text for document in packaged_prose("heldout"))
    ids = encode(setup.tokenizer, words)[0]
    kinds = {FULL: Kind(None, True), IN_PIECES: Kind(Full, True)}
    for kept in arguments.fractions:
        kinds[f"namm {kept}"] = Kind(partial(NAMMPolicy, setup.memory, kept=kept), True)
    kinds[f"namm {arguments.fractions[0]}, pieces only"] = replace(
        kinds[f"namm {arguments.fractions[0]}"], layers=False
    )
    with adapted(setup.model, TuneConfig()):
        turns = range(arguments.repeats + 1)
        for repeat, length in track(list(product(turns, arguments.lengths)), "steps"):
            own = ids.repeat(-(-length // len(ids)))[:length]
            text = Text(own[:-ANSWER], own[-ANSWER:], ANSWER)
            for name, kind in kinds.items():
                measure = measure_bytes if repeat == BYTES else measure_seconds
                what = {"kind": name, "tokens": length, "piece": arguments.piece, "repeat": repeat}
                results.row(partial(measure, setup, text, kind, arguments.piece), **what)
    results.write()


if __name__ == "__main__":
    main()
