"""What every rule loses at equal kept fractions: continuation loss, and tasks whose question was not known.

    python benchmarks/quality.py loss                        # packaged prose and the standard library's code
    python benchmarks/quality.py loss --text FOLDER          # texts of your own
    python benchmarks/quality.py tasks --lengths 1024 2048 4096 --samples 30    # pass keys
    python benchmarks/quality.py tasks --tasks pass_key multi_key key_value repeated_code

The memory aims at the fraction asked for. In `loss`, what it really kept of a document is the other rules' budget on
that document; in `tasks`, where a sample costs more, theirs is the fraction itself, so that they need not be measured
again for another memory: compare what was kept. Measurements are appended to a file of JSON lines as they come, and a
measurement that the file has is not made again: stop and go on as you like.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import namm
from namm.evaluation import answer_score, mean_interval, tail_loss
from namm.policies import BUDGETED, Full, Policy
from namm.policies.names import make_policy
from namm.support.journal import Journal, Row
from namm.tasks import Document, heldout_documents, read_documents
from namm.tasks.encode import encode
from namm.tasks.registry import GENERATORS


def mean(values: list[float], form: str = ".3f") -> str:
    """Mean and half the width of its 95% interval."""
    average, half = mean_interval(values)
    return f"{average:{form}}" if math.isnan(half) else f"{average:{form}} ± {half:.3f}"


def loss(arguments: argparse.Namespace, model: Any, tokenizer: Any, memory: namm.NAMM, log: Journal) -> None:
    documents = evaluation_documents(arguments)
    names = [name for name in BUDGETED if name in arguments.policies]
    found: dict[tuple[str, float, str], list[Row]] = {}
    for document in track(documents, "documents"):
        ids = encode(tokenizer, document.text)[:, : arguments.tokens + arguments.tail]
        if ids.shape[1] < arguments.tokens + arguments.tail:
            continue
        place = f"{arguments.model} {document.name} {arguments.tokens}+{arguments.tail}"
        full = log.get(f"{place} full", lambda ids=ids: vars(tail_loss(model, ids, Full(), arguments.tail)))
        for aim in arguments.fractions:
            budget = aim
            for name in ("namm", *names):
                policy = make_policy(name, budget, memory)
                key = f"{place} {name} {aim} {arguments.memory}"
                row = log.get(key, lambda ids=ids, policy=policy: vars(tail_loss(model, ids, policy, arguments.tail)))
                budget = row["kept_fraction"] if name == "namm" else budget
                row = row | {"rise": row["loss"] - full["loss"]}
                found.setdefault((document.kind, aim, name), []).append(row)
    table = Table(title=f"rise in loss of the {arguments.tail} tokens after {arguments.tokens}, nats a token (95%)")
    for heading in ("texts", "documents", "kept", "policy", "rise", "of h2o's", "of streaming's"):
        table.add_column(heading, justify="right")
    for (kind, aim, name), rows in found.items():
        average = _rise(rows)
        shares = [
            _rise(found[kind, aim, other]) if (kind, aim, other) in found else math.nan
            for other in ("h2o", "streaming")
        ]
        table.add_row(
            kind,
            str(len(rows)),
            f"{sum(row['kept_fraction'] for row in rows) / len(rows):.3f}",
            name,
            mean([row["rise"] for row in rows], "+.4f"),
            *(f"{average / share:.2f}" for share in shares),
        )
    Console(width=130).print(table)


def _rise(rows: list[Row]) -> float:
    return sum(row["rise"] for row in rows) / len(rows)


def tasks(arguments: argparse.Namespace, model: Any, tokenizer: Any, memory: namm.NAMM, log: Journal) -> None:
    documents = evaluation_documents(arguments)
    names = [name for name in ("namm", *BUDGETED) if name in arguments.policies]
    found: dict[tuple[str, int, float, str], list[Row]] = {}
    for task, length in itertools.product(arguments.tasks, arguments.lengths):
        kind = "code" if task == "repeated_code" else "prose"
        haystack = [document for document in documents if document.kind == kind]
        for seed in track(range(arguments.seed, arguments.seed + arguments.samples), f"{task}, {length} tokens"):
            parts = GENERATORS[task](haystack, tokenizer, tokens=length, seed=seed).token_ids(tokenizer)

            def measure(policy: Policy, parts: tuple[torch.Tensor, ...] = parts) -> Row:
                return vars(answer_score(model, *parts, policy))

            place = f"{arguments.model} {task} {length} {seed} {arguments.text}"
            full = log.get(f"{place} full", lambda measure=measure: measure(Full()))
            rows = [(1.0, "full", full)]
            for aim in arguments.fractions:
                for name in names:
                    policy = make_policy(name, aim, memory)
                    key = f"{place} {name} {aim} " + (str(arguments.memory) if name == "namm" else "")
                    rows.append((aim, name, log.get(key, lambda policy=policy, measure=measure: measure(policy))))
            for aim, name, row in rows:
                relative = math.exp(row["log_probability"] - full["log_probability"])
                found.setdefault((task, length, aim, name), []).append(row | {"relative": relative})
    table = Table(
        title="answers to a question that the policy has not seen: exact, and probability a token by the full cache's"
    )
    for heading in ("task", "tokens", "samples", "kept", "policy", "right", "relative probability"):
        table.add_column(heading, justify="right")
    for (task, length, _, name), rows in found.items():
        table.add_row(
            task,
            str(length),
            str(len(rows)),
            f"{sum(row['kept_fraction'] for row in rows) / len(rows):.3f}",
            name,
            mean([float(row["correct"]) for row in rows], ".2f"),
            mean([row["relative"] for row in rows]),
        )
    Console(width=130).print(table)


def evaluation_documents(arguments: argparse.Namespace) -> list[Document]:
    """The user's texts, or what every machine has and the shipped memory has not learned from."""
    if arguments.text:
        documents = read_documents(*arguments.text)
        return documents[: arguments.documents] if arguments.documents else documents
    return heldout_documents(code=arguments.documents or 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["loss", "tasks"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", default="smollm2-135m")
    parser.add_argument("--text", type=Path, nargs="+", help="files or folders in place of the packaged texts")
    parser.add_argument("--documents", type=int, help="at most so many documents")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--policies", nargs="*", default=["namm", *BUDGETED], choices=["namm", *BUDGETED])
    parser.add_argument("--tokens", type=int, default=1280, help="loss: tokens before the tail")
    parser.add_argument("--tail", type=int, default=256)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="tasks: tokens of the context"
    )
    parser.add_argument("--tasks", nargs="+", default=["pass_key"], choices=list(GENERATORS))
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file of JSON lines to resume from")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
    memory = namm.NAMM.from_pretrained(arguments.memory)
    {"loss": loss, "tasks": tasks}[arguments.task](arguments, model, tokenizer, memory, Journal(arguments.log))


if __name__ == "__main__":
    main()
