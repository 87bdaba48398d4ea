"""Answers to questions that a policy had not seen when it decided what to keep.

    python benchmarks/recall.py                                     # pass keys in the packaged prose
    python benchmarks/recall.py --tasks multi_key key_value repeated_code
    python benchmarks/recall.py --model qwen2.5-coder-0.5b --chat --json benchmarks/results/recall-qwen.json

Pass keys come in every wording of `namm.tasks.passkey.WORDINGS` and at six depths: 30 samples are one of each. In a
chat the context is what the user says, and the question is what the assistant's answer begins with.

Every rule is given the same fraction of the tokens.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, add_comparison, load, made_with, parser
from rich.progress import track
from torch import Tensor

from namm.tasks import GENERATORS, Document, Sample, heldout_documents, pass_key, read_documents
from namm.tasks.answering import read
from namm.tasks.chat import chat_parts
from namm.tasks.passkey import WORDINGS

DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def sample_of(task: str, haystack: list[Document], tokenizer: Any, tokens: int, seed: int) -> tuple[Sample, Row]:
    """A sample, and what its rows say beside its task, length and seed."""
    if task != "pass_key":
        return GENERATORS[task](haystack, tokenizer, tokens=tokens, seed=seed), {}
    turn, index = divmod(seed, len(WORDINGS))
    name, depth = list(WORDINGS)[index], DEPTHS[turn % len(DEPTHS)]
    sample = pass_key(haystack, tokenizer, tokens=tokens, seed=seed, depth=depth, wording=WORDINGS[name])
    return sample, {"wording": name, "depth": depth}


def parts_of(sample: Sample, tokenizer: Any, chat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Context, question and answer, ``[1, tokens]`` each; in a chat the question begins the assistant's answer."""
    if chat:
        asked = chat_parts(tokenizer, sample.context, "", sample.question.lstrip())
        sample = Sample(*asked, sample.answer)
    return sample.token_ids(tokenizer)


def main() -> None:
    options = parser(__doc__, "recall")
    options.add_argument("--text", type=Path, nargs="+", help="files or folders in place of the packaged texts")
    options.add_argument("--tasks", nargs="+", default=["pass_key"], choices=list(GENERATORS))
    options.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="tokens of the context")
    options.add_argument("--samples", type=int, default=30)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--chat", action="store_true", help="in the model's chat template")
    add_comparison(options)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.samples, arguments.fractions = [512], 1, [0.25]
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    documents = read_documents(*arguments.text) if arguments.text else heldout_documents(code=8)

    def measure(parts: tuple[Tensor, ...], policy: str, budget: float | None) -> Row:
        context, question, answer = (part[0] for part in parts)
        rule, rehearsal = setup.policy(policy, budget)
        reading = read(setup.model, [context], rule, rehearse=rehearsal)
        found, first_choice = reading.score(question, answer)
        return {
            "log_probability": float(found.mean()),
            "correct": bool(first_choice.all()),
            "right_tokens": float(first_choice.float().mean()),
            "seen": len(context),
            "kept_fraction": reading.stats.kept_fraction,
            "held_bytes": reading.stats.held_bytes,
            "full_bytes": reading.stats.full_bytes,
        }

    for task, length in itertools.product(arguments.tasks, arguments.lengths):
        kind = "code" if task == "repeated_code" else "prose"
        haystack = [document for document in documents if document.kind == kind]
        for seed in track(range(arguments.seed, arguments.seed + arguments.samples), f"{task}, {length} tokens"):
            sample, more = sample_of(task, haystack, setup.tokenizer, length, seed)
            parts = parts_of(sample, setup.tokenizer, arguments.chat)
            what = {"task": task, "tokens": length, "seed": seed} | more | ({"chat": True} if arguments.chat else {})
            results.under_every_policy(partial(measure, parts), what, arguments)
    results.write()


if __name__ == "__main__":
    main()
