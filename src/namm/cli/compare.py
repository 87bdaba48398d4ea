from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common
from namm.cli.common import DeviceOption, DtypeOption, JsonOption, KeptOption, MemoryOption, ModelOption
from namm.memory import NAMM
from namm.policies import NAMMPolicy
from namm.tasks import packaged_prose


def compare(
    file: Annotated[Path | None, typer.Argument(help="A text file (default: the packaged demonstration text).")] = None,
    model: ModelOption = common.DEFAULT_MODEL,
    memory: MemoryOption = common.DEFAULT_MEMORY,
    kept: KeptOption = None,
    tokens: Annotated[int, typer.Option(min=64, help="Use at most this many tokens of the file.")] = 4352,
    tail: Annotated[int, typer.Option(min=1, help="Tokens at the end whose loss is measured.")] = 256,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """One document under every policy: kept fraction, cache size, loss of the held-out tail, time."""
    with common.one_clear_error():
        text = common.read_text(file) if file else packaged_prose("demo")[0].text
        own = NAMM.from_pretrained(memory)
        NAMMPolicy(own, kept=kept)  # refuse what it can't aim at before the model is loaded
        network, tokenizer = common.load(model, dtype, device)
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
        rows = common.run_comparison(network, ids, own, kept, tail)
        if as_json:
            print(json.dumps([asdict(row) for row in rows]))
        else:
            name = file.name if file else "demo"
            common.print_comparison(f"{name}: {ids.shape[1] - tail} tokens, then the loss of {tail}", rows)
