"""Answers of the field's benchmarks after a document was read and mostly forgotten: L-Eval, LongBench, RULER in files.

    python benchmarks/answers.py --data FOLDER --model qwen2.5-coder-0.5b --chat
    python benchmarks/answers.py --data FOLDER --tasks ruler/niah_multikey_3 --tokens 8192 --questions 1

FOLDER holds the benchmarks' files, as for `namm eval --data`. A document that is too long loses its middle. It is read
and decided on once under every policy, and then asked each of its questions by itself: the metric is the task's own, of
what the model says (fewer tokens of it than published, by default), and the likelihood that of the reference's first
tokens, exp of their mean log-probability. Documents are those that `namm distill --train-split` never learns from,
spread evenly over the file; a document's value is the mean over its questions.

Every rule is given the same fraction of the tokens.
"""

from __future__ import annotations

import copy
import math
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, Setup, add_comparison, load, made_with, parser
from rich.progress import track
from torch import Tensor

from namm.evaluation.benchmarks.base import Question, Request, Task
from namm.evaluation.benchmarks.metrics import METRICS
from namm.evaluation.replies import Prompt, prompt_of
from namm.evaluation.run import prepare
from namm.evaluation.suites import find_tasks
from namm.tasks import Document, split_documents
from namm.tasks.answering import padding_token, read
from namm.tasks.encode import encode

TASKS = (
    "longbench/multi_news",
    "leval/gov_report_summ",
    "leval/meeting_summ",
    "leval/paper_assistant",
    "leval/topic_retrieval_longchat",
    "ruler/niah_multikey_3",
)


@dataclass(frozen=True)
class Asked:
    """One document, ``[tokens]``, and its questions with their tokens ``[tokens]``."""

    name: str
    context: Tensor
    questions: list[tuple[Question, Tensor]]


def documents(task: Task, tokenizer: Any, arguments: Any) -> list[Asked]:
    """Those that are asked about, spread evenly over the file."""
    about: dict[str, list[Question]] = {}
    for question in task.questions(Request(tokenizer, arguments.data, tokens=arguments.tokens)):
        about.setdefault(question.context, []).append(question)
    if not arguments.every:
        learned = split_documents([Document(context, context, "prose") for context in about], seed=0)["train"]
        for document in learned:
            del about[document.name]
    every = list(about.values())
    count = min(arguments.documents, len(every))
    found = []
    for own in (every[number * len(every) // count][: arguments.questions] for number in range(count)):
        prompts = [prompt_of(tokenizer, task, question, chat=arguments.chat) for question in own]
        longest = max((prompt.question for prompt in prompts), key=len)
        context = Prompt(prompts[0].context, longest).cut_in_the_middle(arguments.tokens).context
        asked = [(question, prompt.question) for question, prompt in zip(own, prompts, strict=True)]
        found.append(Asked(own[0].name, context, asked))
    return found


def measure(setup: Setup, task: Task, asked: Asked, arguments: Any, policy: str, budget: float | None) -> Row:
    """One document under one policy: the means over its questions."""
    rule, rehearsal = setup.policy(policy, budget)
    pad, new = padding_token(setup.tokenizer), min(task.new_tokens, arguments.new_tokens)
    reading = read(setup.model, [asked.context], rule, pad=pad, rehearse=rehearsal)
    log_probabilities, scores = [], []
    for question, ids in asked.questions:
        reference = encode(setup.tokenizer, question.answers[0], begins=False)[0, : arguments.reference]
        scored, spoken = (replace(reading, cache=copy.deepcopy(reading.cache)) for _ in range(2))
        log_probabilities.append(float(scored.score(ids, reference)[0].mean()))
        said = str(setup.tokenizer.decode(spoken.generate([ids], new)[0], skip_special_tokens=True)).lstrip("\n")
        scores.append(METRICS[task.metric](said, question.answers, question.classes))
    return {
        "score": statistics.mean(scores),
        "likelihood": statistics.mean(map(math.exp, log_probabilities)),
        "log_probability": statistics.mean(log_probabilities),
        "seen": len(asked.context),
        "kept_fraction": reading.stats.kept_fraction,
        "held_bytes": reading.stats.held_bytes,
        "full_bytes": reading.stats.full_bytes,
    }


def main() -> None:
    options = parser(__doc__, "answers")
    options.add_argument("--data", type=Path, required=True, help="folder with the benchmarks' files")
    options.add_argument("--tasks", nargs="+", default=list(TASKS), help="as --task of namm eval")
    options.add_argument("--every", action="store_true", help="also documents that --train-split would learn from")
    options.add_argument("--documents", type=int, default=12, help="of each task, at most")
    options.add_argument("--questions", type=int, default=3, help="about each document, at most")
    options.add_argument("--tokens", type=int, default=3500, help="of document and question, at most")
    options.add_argument("--new-tokens", type=int, default=96, help="of what is said, at most")
    options.add_argument(
        "--reference", type=int, default=128, help="tokens of a reference whose likelihood is measured"
    )
    options.add_argument("--chat", action="store_true", help="in the model's chat template")
    add_comparison(options)
    options.set_defaults(fractions=[0.25], policies=["kvzip", "expected", "snapkv", "streaming"])
    arguments = options.parse_args()
    if arguments.quick:
        arguments.documents, arguments.questions, arguments.tokens = 1, 2, 600
        arguments.new_tokens, arguments.reference, arguments.fractions = 4, 8, [0.25]
    tasks = find_tasks(arguments.tasks)
    prepare(tasks)
    setup = load(arguments)
    results = Measurements(arguments, made_with(arguments, setup))
    settings = {name: getattr(arguments, name) for name in ("tokens", "questions", "new_tokens", "reference", "chat")}
    for task in tasks:
        for asked in track(documents(task, setup.tokenizer, arguments), task.name):
            what = {"task": task.name, "metric": task.metric, "document": asked.name} | settings
            results.under_every_policy(partial(measure, setup, task, asked, arguments), what, arguments)
    results.write()


if __name__ == "__main__":
    main()
