from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from namm.cli import common, options
from namm.cli.console import print_json, print_table
from namm.cli.options import Dtype
from namm.cli.progress import stages

if TYPE_CHECKING:
    from namm.evaluation import Comparison

HEADINGS = ("policy", "kept", "cache MiB", "loss", "rise", "prefill s")


def compare(
    file: Annotated[Path | None, typer.Argument(help="A text file (default: a packaged chapter of Austen).")] = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    kept: options.KeptOption = None,
    budget: options.TokensOption = None,
    rehearse: options.RehearseOption = False,
    tokens: Annotated[int, typer.Option(min=64, help="Use at most this many tokens of the file.")] = 4352,
    tail: Annotated[int, typer.Option(min=1, help="Tokens at the end whose loss is measured.")] = 256,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """One document under every policy: kept fraction, cache size, loss of the held-out tail, time."""
    from namm.evaluation import compare as run
    from namm.memory import NAMM
    from namm.tasks import packaged_prose
    from namm.tasks.encode import encode, to_repeat

    text = common.read_text(file) if file else packaged_prose("demo")[0].text
    own = NAMM.from_pretrained(memory)
    common.policy_from("namm", own, kept=kept, budget=budget)  # refuse before the model is loaded
    network, tokenizer = common.load(model, dtype, device)
    ids = encode(tokenizer, text)[:, :tokens].to(network.device)
    rows: list[Comparison] = []
    with stages() as progress:

        def before(policy: str) -> None:
            progress("policies", len(rows), len(options.POLICIES), policy)

        instruction = to_repeat(tokenizer)
        found = run(
            network,
            ids,
            own,
            kept=kept,
            budget=budget,
            tail=tail,
            instruction=instruction,
            rehearse=rehearse,
            progress=before,
        )
        for row in found:
            rows.append(row)
        progress("policies", len(rows), len(rows))
    name = file.name if file else "demo.txt"
    if as_json:
        print_json({"text": name, "tokens": ids.shape[1], "tail": tail, "policies": [asdict(row) for row in rows]})
    else:
        print_table(f"{name}: {ids.shape[1] - tail} tokens, then the loss of {tail}", HEADINGS, cells(rows))


def cells(rows: list[Comparison]) -> list[tuple[str, ...]]:
    """Under `HEADINGS`."""
    return [
        (
            row.policy,
            f"{row.tail.kept_fraction:.3f}",
            f"{row.tail.held_bytes / 2**20:.1f}",
            f"{row.tail.loss:.3f}",
            f"{row.rise:+.3f}",
            f"{row.tail.seconds:.1f}",
        )
        for row in rows
    ]
