from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, print_json
from namm.cli.options import Dtype
from namm.cli.progress import stages


def read_text(
    file: Annotated[Path, typer.Argument(help="A text file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is remembered of it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Without the model's chat template.")] = False,
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    policy: options.PolicyOption = "namm",
    kept: options.KeptOption = None,
    budget: options.BudgetOption = None,
    rehearse: options.RehearseOption = False,
    bits: options.BitsOption = None,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Read a text once and save what is remembered of it, for `namm ask`."""
    from namm.support.runs import check_output

    text = common.read_text(file)
    check_output(output, inputs=[file])
    common.check_writable(output)

    import torch

    from namm.cache import MemoryCache
    from namm.cache.saved import FILE
    from namm.cli.reading import read
    from namm.memory import NAMM
    from namm.tasks.chat import before_questions
    from namm.tasks.encode import encode, to_repeat

    rule = common.policy_from(policy, NAMM.from_pretrained(memory), kept=kept, budget=budget, rehearse=rehearse)
    network, tokenizer = common.load(model, dtype, device)
    begun, chat = before_questions(tokenizer, text, raw=raw)
    ids = encode(tokenizer, begun).to(network.device)
    cache = MemoryCache(network, rule, bits=bits)
    with torch.inference_mode(), stages() as progress:
        instruction = to_repeat(tokenizer) if rehearse or rule.needs_rehearsal else None
        read(network, ids, cache, progress, rehearse=instruction)
    notes = {"model": model, "text": file.name, "chat": chat, "tokens": ids.shape[1], "policy": policy}
    cache.save(output, tokenizer, ids, notes)
    stats, size = cache.stats(), (output / FILE).stat().st_size
    if as_json:
        print_json(
            notes
            | {"kept_fraction": stats.kept_fraction, "held_bytes": stats.held_bytes, "full_bytes": stats.full_bytes}
            | {"file_bytes": size, "output": str(output)}
        )
    else:
        console.print(f"{stats}", soft_wrap=True)
        console.print(f'{size / 2**20:.1f} MiB in {output}; ask it: namm ask {output} "..."', soft_wrap=True)
