from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from namm.cli import common, options
from namm.cli.console import console, errors, print_json
from namm.cli.options import Dtype
from namm.cli.progress import stages


def generate(
    prompt: Annotated[str | None, typer.Option(help="The prompt itself.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file that goes before the prompt or question.")] = None,
    question: Annotated[
        str | None, typer.Option(help="Asked after the file; without one, about a packaged text of 1,600 tokens.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text, without the model's chat template.")] = False,
    model: options.ModelOption = options.DEFAULT_MODEL,
    memory: options.MemoryOption = options.DEFAULT_MEMORY,
    policy: options.PolicyOption = "namm",
    kept: options.KeptOption = None,
    offset: Annotated[
        float | None, typer.Option(help="In place of --kept: added to the memory's scores; larger keeps more.")
    ] = None,
    budget: options.BudgetOption = None,
    rehearse: options.RehearseOption = False,
    bits: options.BitsOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 128,
    dtype: options.DtypeOption = Dtype.AUTO,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer a prompt, or a question about a file, with a cache that forgets."""
    if file is None and prompt is None and question is not None:
        text: str | None = common.packaged_story().text
    else:
        text = common.read_text(file) if file else None
    if not any(part and part.strip() for part in (text, prompt, question)):
        raise ValueError("there is no prompt: give --question, --prompt or --file")

    import torch
    from transformers import TextStreamer

    from namm.cache import MemoryCache
    from namm.cli.reading import Clock, answer, encode_prompt, read
    from namm.memory import NAMM
    from namm.tasks.encode import to_repeat

    own = NAMM.from_pretrained(memory)
    rule = common.policy_from(policy, own, kept=kept, offset=offset, budget=budget, rehearse=rehearse)
    network, tokenizer = common.load(model, dtype, device)
    ids = encode_prompt(tokenizer, [text, prompt], question, raw=raw).to(network.device)
    streamer = None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    cache, clock = MemoryCache(network, rule, bits=bits), Clock()
    with torch.inference_mode():
        with stages() as progress:
            # the last token gives the first of the answer; a short prompt is kept whole, if nothing else is asked for
            asked = any(option is not None for option in (kept, offset, budget))
            decide = asked or ids.shape[1] > (rule.update_interval or 0)
            instruction = to_repeat(tokenizer) if rehearse or rule.needs_rehearsal else None
            read(network, ids[:, :-1], cache, progress, decide=decide, rehearse=instruction)
        stats = cache.stats()
        found = answer(network, tokenizer, ids, cache, max_new_tokens, streamer=streamer, stopping_criteria=[clock])
    answered = tokenizer.decode(found, skip_special_tokens=True)
    if not answered.strip():
        errors.print("the model answered nothing (--policy full shows whether it would with everything kept)")
    prefill = ids.shape[1] / clock.prefill
    decode = (len(found) - 1) / clock.decode if len(found) > 1 else None
    if as_json:
        print_json(
            {
                "text": answered,
                "policy": policy,
                "prompt_tokens": ids.shape[1],
                "new_tokens": len(found),
                "kept_fraction": stats.kept_fraction,
                "held_bytes": stats.held_bytes,
                "full_bytes": stats.full_bytes,
                "prefill_tokens_per_second": prefill,
                "decode_tokens_per_second": decode,
            }
        )
    else:
        console.rule()
        console.print(f"{policy}, when the prompt had been read: {stats}")
        console.print(f"prefill {prefill:.0f} tokens/s" + (f", decode {decode:.1f} tokens/s" if decode else ""))
