"""What the benchmarks share: options, and a file of JSON that says how its numbers came about.

Every script writes one file: its command line, the date, the machine, versions, fingerprints of the weights, and a row
for each thing that was measured. `python benchmarks/render.py` makes the tables of the documents from these files.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import namm
from namm.policies import BUDGETED, Policy
from namm.policies.names import ADA, is_budgeted, make_policy
from namm.support.files import strict_json, write_atomically
from namm.support.fingerprints import model_fingerprint
from namm.support.journal import Journal, Row
from namm.support.tensors import round_up
from namm.tasks.encode import to_repeat

RESULTS = Path(__file__).with_name("results")


def parser(description: str | None, name: str, model: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has; `name` is that of its results, `model` is False where none is loaded."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        made.add_argument("--model", default="smollm2-135m", help="shipped name, hub id, folder or .gguf file")
        made.add_argument("--memory", default="universal", help="shipped name, folder or hub id")
        made.add_argument("--device", help="where the model runs, for example cuda")
    made.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    made.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", help="file to write (%(default)s)")
    return made


def add_comparison(made: argparse.ArgumentParser) -> None:
    """The options of `Measurements.under_every_policy`."""
    made.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    made.add_argument(
        "--policies",
        nargs="*",
        default=list(BUDGETED),
        type=rule,
        help="hand-designed rules (%(default)s), or ada-RULE",
    )
    made.add_argument(
        "--equal-bytes", action="store_true", help="also give every rule as many bytes as the memory held"
    )
    made.add_argument("--rehearse", action="store_true", help="the memory sees the text repeated, as some rules do")
    made.add_argument(
        "--rules-from", type=Path, help="an earlier file: rules that it has are not measured again, only the memory"
    )


def rule(name: str) -> str:
    if not is_budgeted(name):
        raise argparse.ArgumentTypeError(f"there is no rule {name!r}: choose from {', '.join(BUDGETED)}, or ada-RULE")
    return name


@dataclass
class Setup:
    """A model under measurement."""

    model: Any
    tokenizer: Any
    memory: namm.NAMM
    rehearse: bool = False

    def policy(self, name: str, budget: float | None) -> tuple[Policy, Tensor | None]:
        """A policy, and what rehearses it (see `namm.tasks.answering.read`) where it needs that or is to have it."""
        policy = make_policy(name, budget, self.memory, self.rehearse)
        return policy, to_repeat(self.tokenizer) if policy.needs_rehearsal else None


def load(arguments: argparse.Namespace) -> Setup:
    """The model and the memory that the options name."""
    model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
    memory = namm.NAMM.from_pretrained(arguments.memory)
    return Setup(model, tokenizer, memory, getattr(arguments, "rehearse", False))


def made_with(arguments: argparse.Namespace, setup: Setup) -> Row:
    """What the numbers depend on: weights, versions, the machine."""
    return {
        "model": described(str(arguments.model), setup.model),
        "memory": {
            "name": str(arguments.memory),
            "fingerprint": setup.memory.fingerprint(),
            "rehearsed": setup.rehearse,
        },
    } | surroundings(setup.model.device)


def described(name: str, model: Any) -> Row:
    """A model's name, its weights and their type."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"name": name, "fingerprint": model_fingerprint(model), "dtype": dtype}


def surroundings(device: torch.device | None = None) -> Row:
    """Versions, and the machine."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device is not None and device.type == "cuda":
        machine["device"] = torch.cuda.get_device_name(device)
    return {"versions": {"python": platform.python_version(), "namm": namm.__version__} | versions, "machine": machine}


def processor() -> str:
    """The processor's name, and which of the instructions that matter here it has."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = set(about.get("flags", "").split())
        known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
        named = f"{about.get('model name', 'unknown')} (family {about.get('cpu family')}, model {about.get('model')})"
        return f"{named}, {', '.join(known)}" if known else named
    return platform.processor() or platform.machine()


def at_equal_bytes(name: str, row: Row, held_bytes: int) -> float:
    """The fraction at which a rule holds so many bytes, by what it held at another fraction.

    A cache takes memory in steps. Where every head keeps equally many tokens they fill the steps that come nearest.
    """
    tokens = row["kept_fraction"] * row["seen"]
    if name.startswith(ADA) or BUDGETED[name].across != "head":
        tokens *= held_bytes / row["held_bytes"]
    else:
        slots = round_up(math.ceil(tokens)) * held_bytes / row["held_bytes"]
        whole = [count for count in range(1, round_up(math.ceil(slots)) + 1) if round_up(count) == count]
        tokens = min(whole, key=lambda count: abs(count - slots))
    return min(1.0, tokens / row["seen"])


def earlier_run(path: Path | None, made: Row) -> Row | None:
    """An earlier run's file, whose rules need not be measured again.

    Raises:
        SystemExit: if it was of another model or with other versions.
    """
    if path is None:
        return None
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    for name in ("model", "versions"):
        if found.get(name) != json.loads(json.dumps(made.get(name))):
            raise SystemExit(f"{path} has another {name} ({found.get(name)}): its rules can't be taken over")
    return found


def command_of(argv: Sequence[str]) -> str:
    """As a results file has it."""
    return shlex.join(["python", f"benchmarks/{Path(argv[0]).name}", *argv[1:]])


class Measurements:
    """Rows of one benchmark, each on disk as soon as it is made: the same command again goes on where it stopped."""

    def __init__(self, arguments: argparse.Namespace, made: Row) -> None:
        self.path: Path = arguments.json
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.made = made
        self.rows: list[Row] = []
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # what else the machine is doing
        self.earlier = earlier_run(getattr(arguments, "rules_from", None), made)
        self.journal = Journal(self.path.with_name(f".{self.path.stem}.journal.jsonl"))

    def row(self, measure: Callable[[], Row], **what: Any) -> Row:
        """The measurement of `what`, made now unless a run that was stopped has made it; `what` is part of it.

        What is measured of a hand-designed rule or of the full cache does not depend on a memory.
        """
        if (known := self._known(what)) is not None:
            self.rows.append(known)
            return known
        found = dict(self.journal.get(self._key(what), lambda: what | measure()))
        del found["key"]
        self.rows.append(found)
        return found

    def has(self, **what: Any) -> bool:
        """Whether a run that was stopped has made this row."""
        return self._key(what) in self.journal.rows

    def _key(self, what: Row) -> str:
        depends = {
            name: own for name, own in self.made.items() if what.get("policy", "namm") == "namm" or name != "memory"
        }
        return json.dumps([what, depends], default=str)

    def _known(self, what: Row) -> Row | None:
        """The row of a hand-designed rule that an earlier run has made of the same."""
        if self.earlier is None or what.get("policy", "namm") in ("namm", "full"):
            return None
        same = what | {"equal": what.get("equal")}
        rows: list[Row] = self.earlier["rows"]
        return next((row for row in rows if all(row.get(name) == own for name, own in same.items())), None)

    def under_every_policy(self, measure: Callable[[str, float | None], Row], what: Row, arguments: Any) -> None:
        """Rows of the full cache, and at each of the fractions of the memory and of the other rules.

        All have the fraction as their budget, and their rows say what they kept. Rows with ``equal: "bytes"`` are of a
        rule that got as many tokens as fit into the bytes that the memory held, by its own bytes a token.

        Args:
            measure: of a policy and its budget; its row has ``seen``, ``kept_fraction`` and ``held_bytes``.
            arguments: with the options of `add_comparison`.
        """
        self.row(partial(measure, "full", None), **what, policy="full", aim=1.0)
        for aim in arguments.fractions:
            own = self.row(partial(measure, "namm", aim), **what, policy="namm", aim=aim)
            for policy in arguments.policies:
                its = self.row(partial(measure, policy, aim), **what, policy=policy, aim=aim)
                if arguments.equal_bytes:
                    budget = at_equal_bytes(policy, its, own["held_bytes"])
                    measured = partial(measure, policy, budget)
                    self.row(measured, **what, policy=policy, aim=aim, equal="bytes", held=own["held_bytes"])

    def write(self, whole: bool = True) -> None:
        """Put the file in place; the journal of the run has then done its work, unless rows are left."""
        head = {
            "command": command_of(sys.argv),
            "date": datetime.date.today().isoformat(),
            "load": self.load,
        }
        if self.earlier is not None:
            head["rules_from"] = {name: self.earlier[name] for name in ("command", "date", "machine")}
        described = strict_json(head | self.made, indent=1).removesuffix("\n}")
        rows = ",\n  ".join(strict_json(row) for row in self.rows)
        write_atomically(self.path, f'{described},\n "rows": [\n  {rows}\n ]\n}}\n')
        assert self.journal.path is not None
        with self.journal:
            if whole:
                self.journal.path.unlink(missing_ok=True)
        print(f"{len(self.rows)} rows are in {self.path}")
