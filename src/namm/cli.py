"""The command line: parses, calls the library, prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Neural attention memory for transformers: a KV cache that forgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Model = Annotated[str, typer.Option(help="Embedded model, hub id, local folder or .gguf file.")]
Memory = Annotated[str, typer.Option(help="Shipped memory, folder or hub id.")]
Kept = Annotated[
    float | None, typer.Option(min=0.01, max=1.0, help="Aim at this kept fraction (else the memory's own choice).")
]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
Device = Annotated[str | None, typer.Option(help="Where the model runs, for example cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_MEMORY = "smollm2-135m"


@contextmanager
def one_clear_error() -> Iterator[None]:
    """What a user can mend is one sentence, not a traceback."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        errors.print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise typer.Exit(130) from None


def _load(model: str, dtype: str, device: str | None) -> tuple[Any, Any]:
    from namm.models import load_model

    with errors.status(f"loading {model}"):
        return load_model(model, dtype=dtype, device=device)


def _policy(name: str, memory: str, kept: float | None, budget: float) -> Any:
    import namm
    from namm.policies import BUDGETED, Full, NAMMPolicy

    if name == "namm":
        return NAMMPolicy(namm.NAMM.from_pretrained(memory), kept=kept)
    if name == "full":
        return Full()
    if name not in BUDGETED:
        raise ValueError(f"unknown policy {name!r}: choose namm, full, {', '.join(BUDGETED)}")
    return BUDGETED[name](budget=int(budget) if budget > 1 else budget)


def _comparison_table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("policy", "kept", "cache MiB", "loss", "rise", "prefill s"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    return table


def _compare(model: Any, ids: Any, memory: Any, kept: float | None, tail: int) -> list[Any]:
    from namm.evaluation import compare

    with errors.status("full") as status:
        return list(
            compare(model, ids, memory, kept=kept, tail=tail, progress=lambda name: status.update(f"measuring {name}"))
        )


def _print_comparison(title: str, rows: list[Any]) -> None:
    table = _comparison_table(title)
    for row in rows:
        tail = row.tail
        table.add_row(
            row.policy,
            f"{tail.kept_fraction:.3f}",
            f"{tail.held_bytes / 2**20:.1f}",
            f"{tail.loss:.3f}",
            f"{row.rise:+.3f}",
            f"{tail.seconds:.1f}",
        )
    console.print(table)


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    memory: Memory = DEFAULT_MEMORY,
    kept: Kept = 0.25,
    tokens: Annotated[int, typer.Option(min=600, help="Length of the document.")] = 4352,
) -> None:
    """Read a real document with a real model, forget most of it, recall a fact, go on writing; then compare all rules."""
    with one_clear_error():
        import torch

        import namm
        from namm.evaluation import answer_score
        from namm.policies import Full, NAMMPolicy
        from namm.tasks import packaged_prose, pass_key

        network, tokenizer = _load(model, "auto", None)
        own = namm.NAMM.from_pretrained(memory)
        document = packaged_prose("demo")[0]
        ids = tokenizer(document.text, return_tensors="pt").input_ids[:, :tokens]
        console.rule("1. A document goes in, most of it is forgotten")
        context = ids[:, :-256]
        cache = namm.MemoryCache(network, NAMMPolicy(own, kept=kept))
        console.print(f"{document.name}: {context.shape[1]} tokens into {model}, memory {memory!r}")
        with torch.inference_mode(), errors.status("reading"):
            written = network.generate(
                context, past_key_values=cache, max_new_tokens=48, do_sample=False, pad_token_id=0
            )
        console.print(str(cache.stats()), highlight=False)
        console.print(
            "… " + tokenizer.decode(context[0, -40:]),
            "[green]" + tokenizer.decode(written[0, context.shape[1] :]) + "[/green]",
        )

        console.rule("2. A fact that nobody had asked for is still there")
        sample = pass_key([document], tokenizer, tokens=2048, seed=3)
        parts = [
            tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            for text in (sample.context, sample.question, sample.answer)
        ]
        for policy in (Full(), NAMMPolicy(own, kept=kept)):
            answer = answer_score(network, *parts, policy)
            console.print(
                f"{policy.name:>5}: key {sample.answer.strip()!r}, asked after 2,048 tokens of which {answer.kept_fraction:.0%} "
                f"are kept: {'right' if answer.correct else 'wrong'}, log-probability {answer.log_probability:.2f}"
            )

        console.rule("3. Every rule on the same document, the next 256 tokens unseen")
        rows = _compare(network, ids, own, kept, 256)
        _print_comparison(f"{document.name}: {context.shape[1]} tokens, then the loss of 256", rows)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Option(help="The prompt itself.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file that goes before the prompt or question.")] = None,
    question: Annotated[str | None, typer.Option(help="Asked after the file.")] = None,
    model: Model = DEFAULT_MODEL,
    memory: Memory = DEFAULT_MEMORY,
    policy: Annotated[str, typer.Option(help="namm, full, streaming, h2o, l2, tova, snapkv or random.")] = "namm",
    kept: Kept = None,
    budget: Annotated[
        float, typer.Option(min=0.0, help="Budget of a hand-designed rule: fraction up to 1, or tokens.")
    ] = 0.25,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt, or answer a question about a file, with a cache that forgets."""
    with one_clear_error():
        import torch
        from transformers import TextStreamer

        import namm

        text = "".join(
            [_read(file) if file else "", "\n\n" if file and (question or prompt) else "", question or "", prompt or ""]
        )
        if not text.strip():
            raise ValueError("the prompt is empty: give --prompt, or --file with or without --question")
        rule = _policy(policy, memory, kept, budget)
        network, tokenizer = _load(model, dtype, device)
        ids = tokenizer(text, return_tensors="pt").input_ids.to(network.device)
        cache = namm.MemoryCache(network, rule)
        clock = _Clock()
        streamer = None if as_json else TextStreamer(tokenizer, skip_prompt=True)
        with torch.inference_mode():
            output = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id or 0,
                streamer=streamer,
                stopping_criteria=[clock],
            )
        stats, new = cache.stats(), output.shape[1] - ids.shape[1]
        summary = {
            "prompt_tokens": ids.shape[1],
            "new_tokens": new,
            "policy": policy,
            "kept_fraction": stats.kept_fraction,
            "held_bytes": stats.held_bytes,
            "full_bytes": stats.full_bytes,
            "prefill_tokens_per_second": ids.shape[1] / clock.prefill,
            "decode_tokens_per_second": (new - 1) / clock.decode if new > 1 else None,
        }
        if as_json:
            print(json.dumps({"text": tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)} | summary))
        else:
            console.rule()
            console.print(str(stats), highlight=False)
            decode = summary["decode_tokens_per_second"]
            console.print(
                f"prefill {summary['prefill_tokens_per_second']:.0f} tokens/s"
                + (f", decode {decode:.1f} tokens/s" if decode else "")
            )


@app.command()
def compare(
    file: Annotated[
        Path | None, typer.Argument(help="A text file; the packaged demonstration text if none is given.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    memory: Memory = DEFAULT_MEMORY,
    kept: Kept = None,
    tokens: Annotated[int, typer.Option(min=64, help="Use at most this many tokens of the file.")] = 4352,
    tail: Annotated[int, typer.Option(min=1, help="Tokens at the end whose loss is measured.")] = 256,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """One document under every policy: kept fraction, cache size, loss of the held-out tail, time."""
    with one_clear_error():
        from dataclasses import asdict

        import namm
        from namm.tasks import packaged_prose

        text = _read(file) if file else packaged_prose("demo")[0].text
        own = namm.NAMM.from_pretrained(memory)
        network, tokenizer = _load(model, dtype, device)
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
        if ids.shape[1] <= tail:
            raise ValueError(f"the document has {ids.shape[1]} tokens, which leaves nothing before a tail of {tail}")
        rows = _compare(network, ids, own, kept, tail)
        if as_json:
            print(json.dumps([asdict(row) for row in rows]))
        else:
            name = file.name if file else "demo"
            _print_comparison(f"{name}: {ids.shape[1] - tail} tokens, then the loss of {tail}", rows)


class _Clock:
    """A stopping criterion that never stops, and notes when the first token came."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        self.last = time.perf_counter()
        self.first = self.first or self.last
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    @property
    def prefill(self) -> float:
        return (self.first or self.last) - self.started

    @property
    def decode(self) -> float:
        return self.last - (self.first or self.last)


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


if __name__ == "__main__":
    app()
