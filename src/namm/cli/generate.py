from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import TextStreamer

from namm.cache import MemoryCache
from namm.cli import common
from namm.cli.common import DeviceOption, DtypeOption, JsonOption, KeptOption, MemoryOption, ModelOption, console
from namm.memory import NAMM
from namm.policies import BUDGETED, Full, NAMMPolicy, Policy


def generate(
    prompt: Annotated[str | None, typer.Option(help="The prompt itself.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file that goes before the prompt or question.")] = None,
    question: Annotated[str | None, typer.Option(help="Asked after the file.")] = None,
    model: ModelOption = common.DEFAULT_MODEL,
    memory: MemoryOption = common.DEFAULT_MEMORY,
    policy: Annotated[str, typer.Option(help="namm, full, streaming, h2o, l2, tova, snapkv or random.")] = "namm",
    kept: KeptOption = None,
    offset: Annotated[
        float | None, typer.Option(help="In place of --kept: added to the memory's scores; larger keeps more.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0.0, help="Of a hand-designed rule: a fraction up to 1 (default 0.25), or tokens."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt, or answer a question about a file, with a cache that forgets."""
    with common.one_clear_error():
        parts = (common.read_text(file) if file else None, prompt, question)
        text = "\n\n".join(part for part in parts if part)
        if not text.strip():
            raise ValueError("the prompt is empty: give --prompt, or --file with or without --question")
        rule = _policy(policy, memory, kept, offset, budget)
        network, tokenizer = common.load(model, dtype, device)
        ids = tokenizer(text, return_tensors="pt").input_ids.to(network.device)
        cache, clock = MemoryCache(network, rule), Clock()
        with torch.inference_mode():
            output = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id or 0,
                streamer=None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=[clock],
            )
        stats, new = cache.stats(), output.shape[1] - ids.shape[1]
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        if not answer.strip():
            common.errors.print(
                "the model answered nothing (--policy full shows whether it would with everything kept)"
            )
        prefill = ids.shape[1] / clock.prefill
        decode = (new - 1) / clock.decode if new > 1 else None
        if as_json:
            summary = {
                "text": answer,
                "policy": policy,
                "prompt_tokens": ids.shape[1],
                "new_tokens": new,
                "kept_fraction": stats.kept_fraction,
                "held_bytes": stats.held_bytes,
                "full_bytes": stats.full_bytes,
                "prefill_tokens_per_second": prefill,
                "decode_tokens_per_second": decode,
            }
            print(json.dumps(summary))
        else:
            console.rule()
            console.print(str(stats), highlight=False)
            speed = f"prefill {prefill:.0f} tokens/s" + (f", decode {decode:.1f} tokens/s" if decode else "")
            console.print(speed, highlight=False)


def _policy(name: str, memory: str, kept: float | None, offset: float | None, budget: float | None) -> Policy:
    if (kept is not None or offset is not None) and name != "namm":
        raise ValueError(f"--kept and --offset are the memory's; {name!r} takes --budget")
    if budget is not None and name not in BUDGETED:
        raise ValueError(f"--budget is for {', '.join(BUDGETED)}; {name!r} does not take one (namm takes --kept)")
    if name == "namm":
        return NAMMPolicy(NAMM.from_pretrained(memory), kept=kept, offset=offset)
    if name == "full":
        return Full()
    if name not in BUDGETED:
        raise ValueError(f"unknown policy {name!r}: choose namm, full, {', '.join(BUDGETED)}")
    budget = 0.25 if budget is None else budget
    if budget > 1 and budget != int(budget):
        raise ValueError(f"--budget {budget} is neither a fraction up to 1 nor a whole number of tokens")
    return BUDGETED[name](budget=int(budget) if budget > 1 else budget)


class Clock:
    """A stopping criterion that never stops, and notes when the first and the last token came."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return input_ids.new_zeros(len(input_ids), dtype=bool)

    @property
    def prefill(self) -> float:
        return (self.first or self.last) - self.started

    @property
    def decode(self) -> float:
        return self.last - (self.first or self.last)
