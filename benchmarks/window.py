"""Loss of a text's end past the model's window: full cache and memory, with stretched positions and without.

    python benchmarks/window.py OUT                                     # SmolLM2 at 1, 2 and 4 times its window
    python benchmarks/window.py OUT --text FOLDER --lengths 8192 16384

Every length ends at the same tokens, so that only what came before them differs. Measurements are appended to
OUT/window.jsonl as they come and not made again; OUT/window.png is the plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import namm
from namm.evaluation import tail_loss
from namm.models.rope import extend_window
from namm.policies import Full, NAMMPolicy
from namm.support.journal import Journal
from namm.support.plotting import pyplot
from namm.tasks import packaged_prose, read_documents
from namm.tasks.encode import beginning, encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", default="smollm2-135m")
    parser.add_argument("--kept", type=float, help="aim at this kept fraction (else the memory's own choice)")
    parser.add_argument("--text", type=Path, nargs="+", help="texts, joined, in place of the packaged prose")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 4.0], help="of the window; 1: as it is")
    parser.add_argument("--tail", type=int, default=256)
    parser.add_argument("--device")
    arguments = parser.parse_args()

    documents = read_documents(*arguments.text) if arguments.text else packaged_prose()
    memory = namm.NAMM.from_pretrained(arguments.memory)
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = Journal(arguments.output / "window.jsonl")
    losses: dict[str, list[float]] = {}
    for factor in arguments.factors:
        model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
        ids = encode(tokenizer, "\n\n".join(d.text for d in documents), begins=False)
        if ids.shape[1] < max(arguments.lengths):
            raise SystemExit(
                f"the texts have {ids.shape[1]} tokens, {max(arguments.lengths)} are needed: --text FOLDER"
            )
        ids, start = ids[:, : max(arguments.lengths)], torch.tensor([beginning(tokenizer)], dtype=torch.long)
        if factor > 1:
            extend_window(model, factor)
        for length in track(arguments.lengths, f"positions stretched by {factor:g}"):
            for name in ("full", "namm"):
                policy = Full() if name == "full" else NAMMPolicy(memory, kept=arguments.kept)
                row = log.get(
                    f"{arguments.model} {length} {factor} {arguments.tail} {max(arguments.lengths)} "
                    f"{name if name == 'full' else (name, arguments.memory, arguments.kept)} {arguments.text}",
                    lambda model=model, ids=ids, start=start, policy=policy, length=length: vars(
                        tail_loss(
                            model, torch.cat([start, ids[:, ids.shape[1] - length :]], dim=1), policy, arguments.tail
                        )
                    ),
                )
                losses.setdefault(f"{name}, {'as trained' if factor == 1 else f'stretched by {factor:g}'}", []).append(
                    row["loss"]
                )

    table = Table(title=f"loss of the last {arguments.tail} tokens, nats a token")
    for heading in ("", *(f"{length:,} tokens" for length in arguments.lengths)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in losses.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    Console(width=110).print(table)

    figure, axes = pyplot().subplots(figsize=(6, 4))
    for name, values in losses.items():
        axes.plot(arguments.lengths, values, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(arguments.lengths, [f"{length:,}" for length in arguments.lengths])
    axes.set_xlabel("tokens before the end of the text")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(arguments.output / "window.png", dpi=150)


if __name__ == "__main__":
    main()
