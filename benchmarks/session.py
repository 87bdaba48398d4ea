"""One long session under a budget of tokens: seconds a token and bytes held, from its beginning to its end.

    python benchmarks/session.py                          # a million tokens, 1,024 of them held
    python benchmarks/session.py --tokens 200000 --budget 512

The packaged prose comes again and again. Positions go far beyond the model's window, so nothing is said about what the
model still understands; a run that was stopped begins anew.
"""

from __future__ import annotations

import time
from itertools import cycle

import torch
from measuring import Measurements, Row, Setup, load, made_with, parser
from rich.progress import track

from namm import MemoryCache
from namm.tasks import packaged_prose
from namm.tasks.answering import PIECE
from namm.tasks.encode import encode


def main() -> None:
    options = parser(__doc__, "session")
    options.add_argument("--tokens", type=int, default=1_000_000)
    options.add_argument("--budget", type=int, default=1024, help="tokens held")
    options.add_argument("--parts", type=int, default=10, help="of the session, each with a row")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.budget, arguments.parts = 4096, 300, 2
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    for row in session(setup, arguments.tokens, arguments.budget, arguments.parts):
        results.rows.append(row)
    results.write()


@torch.inference_mode()
def session(setup: Setup, tokens: int, budget: int, parts: int) -> list[Row]:
    """A row for each part: tokens read so far, seconds, what was held at its end and at most."""
    texts = cycle(encode(setup.tokenizer, one.text, begins=False)[0] for one in packaged_prose())
    cache = MemoryCache(setup.model, setup.policy("namm", budget)[0])
    ids, rows, seen = torch.zeros(0, dtype=torch.long), [], 0
    for part in track(range(parts), "parts"):
        most, read, started = 0, 0, time.perf_counter()
        while seen + read < tokens * (part + 1) // parts:
            while len(ids) < PIECE:
                ids = torch.cat([ids, next(texts)])
            setup.model(ids[None, :PIECE].to(setup.model.device), past_key_values=cache, logits_to_keep=1)
            ids, read = ids[PIECE:], read + PIECE
            most = max(most, cache.stats().held_bytes)
        seconds, seen, stats = time.perf_counter() - started, seen + read, cache.stats()
        rows.append(
            {"tokens": seen, "read": read, "budget": budget, "seconds": seconds, "held_bytes": stats.held_bytes}
            | {"most_bytes": most, "kept": stats.kept_fraction * seen, "full_bytes": stats.full_bytes}
        )
    return rows


if __name__ == "__main__":
    main()
