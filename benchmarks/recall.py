"""Answers to questions that a policy had not seen when it decided what to keep.

    python benchmarks/recall.py                                     # pass keys in the packaged prose
    python benchmarks/recall.py --tasks multi_key key_value repeated_code

The memory aims at the fraction asked for; what it really kept of a sample is the other rules' budget on that sample.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

from measuring import Measurements, Row, load, made_with, parser
from rich.progress import track
from torch import Tensor

from namm.policies import BUDGETED
from namm.policies.names import make_policy
from namm.tasks import GENERATORS, heldout_documents, read_documents
from namm.tasks.answering import read
from namm.tasks.encode import to_repeat


def main() -> None:
    options = parser(__doc__, "recall")
    options.add_argument("--text", type=Path, nargs="+", help="files or folders in place of the packaged texts")
    options.add_argument("--tasks", nargs="+", default=["pass_key"], choices=list(GENERATORS))
    options.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="tokens of the context")
    options.add_argument("--samples", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    options.add_argument("--policies", nargs="*", default=list(BUDGETED), choices=list(BUDGETED))
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.samples, arguments.fractions = [512], 1, [0.25]
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    documents = read_documents(*arguments.text) if arguments.text else heldout_documents(code=8)

    instruction = to_repeat(setup.tokenizer)

    def measure(parts: tuple[Tensor, ...], policy: str, budget: float | None) -> Row:
        context, question, answer = (part[0] for part in parts)
        rule = make_policy(policy, budget, setup.memory)
        reading = read(setup.model, [context], rule, rehearse=instruction if rule.needs_rehearsal else None)
        found, first_choice = reading.score(question, answer)
        return {
            "log_probability": float(found.mean()),
            "correct": bool(first_choice.all()),
            "kept_fraction": reading.stats.kept_fraction,
            "held_bytes": reading.stats.held_bytes,
            "full_bytes": reading.stats.full_bytes,
        }

    for task, length in itertools.product(arguments.tasks, arguments.lengths):
        kind = "code" if task == "repeated_code" else "prose"
        haystack = [document for document in documents if document.kind == kind]
        for seed in track(range(arguments.seed, arguments.seed + arguments.samples), f"{task}, {length} tokens"):
            sample = GENERATORS[task](haystack, setup.tokenizer, tokens=length, seed=seed)
            parts = sample.token_ids(setup.tokenizer)
            what = {"task": task, "tokens": length, "seed": seed}
            results.under_every_policy(partial(measure, parts), what, arguments)
    results.write()


if __name__ == "__main__":
    main()
