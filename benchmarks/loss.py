"""What every rule loses at equal kept fractions: loss of what comes after a passage that it read and mostly forgot.

    python benchmarks/loss.py                        # packaged prose and the standard library's code
    python benchmarks/loss.py --text FOLDER          # texts of your own
    python benchmarks/loss.py --model gemma3-270m --json benchmarks/results/loss-gemma.json

Every rule is given the same fraction of the tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Measurements, Row, add_comparison, load, made_with, parser
from rich.progress import track
from torch import Tensor

from namm.tasks import Document, heldout_documents, read_documents
from namm.tasks.answering import tail_loss
from namm.tasks.encode import beginning, encode


def passages(documents: list[Document], tokenizer: Any, tokens: int, count: int) -> Iterator[tuple[str, str, Tensor]]:
    """Of each kind at most `count`, as (kind, name, ids): every document's first, then every document's second ..."""
    start = torch.tensor([beginning(tokenizer)], dtype=torch.long)
    step = tokens - start.shape[1]
    for kind in ("prose", "code"):
        own = [document for document in documents if document.kind == kind]
        texts = [(document.name, encode(tokenizer, document.text)[:, start.shape[1] :]) for document in own]
        dealt = (
            (kind, f"{name} ({turn + 1})", torch.cat([start, ids[:, turn * step : (turn + 1) * step]], dim=1))
            for turn in range(max((ids.shape[1] // step for _, ids in texts), default=0))
            for name, ids in texts
            if ids.shape[1] >= (turn + 1) * step
        )
        yield from itertools.islice(dealt, count)


def main() -> None:
    options = parser(__doc__, "loss")
    options.add_argument("--text", type=Path, nargs="+", help="files or folders in place of the packaged texts")
    options.add_argument("--passages", type=int, default=8, help="of each kind, at most")
    options.add_argument("--tokens", type=int, default=1280, help="read before the tail")
    options.add_argument("--tail", type=int, default=256)
    add_comparison(options)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.passages, arguments.tokens, arguments.tail, arguments.fractions = 1, 512, 32, [0.25]
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    documents = read_documents(*arguments.text) if arguments.text else heldout_documents()
    found = list(passages(documents, setup.tokenizer, arguments.tokens + arguments.tail, arguments.passages))
    if not found:
        raise SystemExit(f"no text has {arguments.tokens + arguments.tail} tokens")

    def measure(ids: Tensor, policy: str, budget: float | None) -> Row:
        rule, rehearsal = setup.policy(policy, budget)
        tail = vars(tail_loss(setup.model, ids, rule, arguments.tail, rehearsal))
        return {name: value for name, value in tail.items() if name != "seconds"} | {"seen": arguments.tokens}

    for kind, name, ids in track(found, "passages"):
        what = {"tokens": arguments.tokens, "tail": arguments.tail, "kind": kind, "passage": name}
        results.under_every_policy(partial(measure, ids), what, arguments)
    results.write()


if __name__ == "__main__":
    main()
