"""Whether budgets hold: the fraction kept of many texts of many lengths, after they were read and decided on.

    python benchmarks/budgets.py
    python benchmarks/budgets.py --models smollm2-135m gemma3-270m qwen2.5-coder-0.5b --aims 0.5 0.25 0.125

Prose and code in turn, of lengths even in their logarithms, cut where chance has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Measurements, Row, described, parser, surroundings
from rich.progress import track
from tables import miss
from torch import Tensor

import namm
from namm.policies.names import make_policy
from namm.tasks import Document, heldout_documents, read_documents
from namm.tasks.answering import read
from namm.tasks.encode import beginning, encode


def texts(
    documents: list[Document], tokenizer: Any, count: int, least: int, most: int
) -> Iterator[tuple[Document, Tensor]]:
    """Documents, and a stretch ``[tokens]`` of each with the tokenizer's beginning."""
    rng = random.Random("budgets")
    start = torch.tensor(beginning(tokenizer), dtype=torch.long)
    encoded = [(document, encode(tokenizer, document.text)[0, len(start) :]) for document in documents]
    for number in range(count):
        length = round(least * (most / least) ** (number / max(1, count - 1))) - len(start)
        kind = ("prose", "code")[number % 2]
        long = [(document, ids) for document, ids in encoded if document.kind == kind and len(ids) >= length]
        if not long:
            raise SystemExit(f"no {kind} has {length} tokens: shorten --tokens, or give longer --text")
        document, ids = rng.choice(long)
        first = rng.randrange(len(ids) - length + 1)
        yield document, torch.cat([start, ids[first : first + length]])


def main() -> None:
    options = parser(__doc__, "budgets", model=False)
    options.add_argument("--models", nargs="+", default=["smollm2-135m"], help="as --model of the other benchmarks")
    options.add_argument("--memory", default="universal", help="shipped name, folder or hub id")
    options.add_argument("--device", help="where the models run, for example cuda")
    options.add_argument("--text", type=Path, nargs="+", help="files or folders in place of the packaged texts")
    options.add_argument("--texts", type=int, default=100)
    options.add_argument("--tokens", type=int, nargs=2, default=[1000, 4000], help="of the shortest and the longest")
    options.add_argument("--aims", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    arguments = options.parse_args()
    if arguments.quick:
        arguments.texts, arguments.tokens, arguments.aims = 2, [512, 600], [0.25]
    memory = namm.NAMM.from_pretrained(arguments.memory)
    documents = read_documents(*arguments.text) if arguments.text else heldout_documents()
    loaded = {str(name): namm.load_model(name, device=arguments.device) for name in arguments.models}
    made = {
        "models": [described(name, model) for name, (model, _) in loaded.items()],
        "memory": {"name": str(arguments.memory), "fingerprint": memory.fingerprint()},
    }
    device = next(iter(loaded.values()))[0].device
    results = Measurements(arguments, made | surroundings(device))

    def measure(model: Any, ids: Tensor, aim: float) -> Row:
        return {"kept_fraction": read(model, [ids], make_policy("namm", aim, memory)).stats.kept_fraction}

    for name, (model, tokenizer) in loaded.items():
        found = list(texts(documents, tokenizer, arguments.texts, *arguments.tokens))
        for number, (document, ids) in enumerate(track(found, name)):
            for aim in arguments.aims:
                what = {"model": name, "number": number, "kind": document.kind, "text": document.name}
                results.row(partial(measure, model, ids, aim), **what, tokens=len(ids), aim=aim)
    results.write()
    worst = max(results.rows, key=miss)
    print(
        f"furthest from its aim: {worst['kept_fraction']:.3f} in place of {worst['aim']:g} ({miss(worst):.3f}), "
        f"{worst['model']}, {worst['text']}, {worst['tokens']} tokens"
    )


if __name__ == "__main__":
    main()
