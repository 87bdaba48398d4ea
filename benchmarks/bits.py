"""What fewer bits for keys and values cost: loss after a passage and pass keys at one kept fraction, with 16, 8 and 4.

    python benchmarks/bits.py
    python benchmarks/bits.py --model gemma3-270m --json benchmarks/results/bits-gemma.json
    python benchmarks/bits.py --model qwen2.5-coder-0.5b --chat --json benchmarks/results/bits-qwen.json

Passages and keys are those of `loss.py` and `recall.py`. 16 stands for the model's own numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from loss import passages
from measuring import Measurements, Row, Setup, load, made_with, parser
from recall import parts_of, sample_of
from rich.progress import track
from torch import Tensor

from namm.tasks import heldout_documents
from namm.tasks.answering import read

BITS = (16, 8, 4)


def main() -> None:
    options = parser(__doc__, "bits")
    options.add_argument("--passages", type=int, default=8, help="of each kind, at most")
    options.add_argument("--samples", type=int, default=30, help="pass keys")
    options.add_argument("--tokens", type=int, default=1280, help="of a passage, before the tail")
    options.add_argument("--tail", type=int, default=256)
    options.add_argument("--context", type=int, default=1024, help="tokens of a text with a key")
    options.add_argument("--kept", type=float, default=0.25)
    options.add_argument("--chat", action="store_true", help="keys in the model's chat template")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.passages, arguments.samples, arguments.tokens, arguments.tail, arguments.context = 1, 1, 512, 32, 512
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    documents = heldout_documents()
    found = list(passages(documents, setup.tokenizer, arguments.tokens + arguments.tail, arguments.passages))
    for kind, name, ids in track(found, "passages"):
        parts = ids[0, : arguments.tokens], ids[0, :0], ids[0, arguments.tokens :]
        compare(results, setup, parts, arguments.kept, {"task": "loss", "kind": kind, "name": name})
    prose = [document for document in documents if document.kind == "prose"]
    for seed in track(range(arguments.samples), "pass keys"):
        sample, _ = sample_of("pass_key", prose, setup.tokenizer, arguments.context, seed)
        context, question, answer = (part[0] for part in parts_of(sample, setup.tokenizer, arguments.chat))
        compare(results, setup, (context, question, answer), arguments.kept, {"task": "pass key", "name": str(seed)})
    results.write()


def compare(
    results: Measurements, setup: Setup, parts: tuple[Tensor, Tensor, Tensor], kept: float, what: dict[str, Any]
) -> None:
    """A row for each number of bits."""
    for bits in BITS:
        results.row(partial(measure, setup, parts, kept, bits), **what, kept=kept, bits=bits)


def measure(setup: Setup, parts: tuple[Tensor, Tensor, Tensor], kept: float, bits: int) -> Row:
    context, question, answer = parts
    policy, _ = setup.policy("namm", kept)
    reading = read(setup.model, [context], policy, bits=None if bits == 16 else bits)
    chosen, first_choice = reading.score(question, answer)
    return {
        "log_probability": float(chosen.mean()),
        "correct": bool(first_choice.all()),
        "tokens": len(context),
        "kept_fraction": reading.stats.kept_fraction,
        "held_bytes": reading.stats.held_bytes,
        "kv_bytes": reading.stats.kv_bytes,
        "full_bytes": reading.stats.full_bytes,
    }


if __name__ == "__main__":
    main()
