"""RULER (arXiv 2404.06654): eleven synthetic tasks made here, and two made from SQuAD and HotpotQA.

Templates, parameters and solved examples are the benchmark's; the generators are ours. They differ in this: words come
from the request's own prose instead of lists of nouns, adjectives and verbs, essays are that prose instead of Paul
Graham's, and each prompt is filled to the last unit of haystack that fits instead of in steps. A file that RULER itself
wrote (``<task>.jsonl``, ``<task>_4096.jsonl`` or ``<task>/validation.jsonl``) is used in place of the generator, where the
data folder has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from namm.evaluation.benchmarks.base import Question, Request, SkippedTaskError, Task, local_rows
from namm.evaluation.benchmarks.ruler_answers import PUBLISHED, read_library
from namm.evaluation.benchmarks.ruler_forms import Maker, fill
from namm.evaluation.benchmarks.ruler_needles import Needles
from namm.evaluation.benchmarks.ruler_variables import variable_maker
from namm.evaluation.benchmarks.ruler_words import common_maker, frequent_maker
from namm.tasks.rows import Row, text_of, texts_of

ANSWER_TOKENS = 32  # of the tasks with documents
ANSWERED = 500  # of their questions, as published: the data has thousands

# The last of these begins the question. A prompt with documents repeats its instruction there.
_ASKS = re.compile(
    r"\n\nAnswer the question based on the given documents\.[^\n]*\n\nQuestion: "
    r"|\nWhat (?:is|are all) the special magic |\nQuestion: "
)

# task: how its prompts are made, tokens to generate
_SYNTHETIC: Mapping[str, tuple[Callable[[Request], Maker], int]] = {
    "niah_single_1": (Needles("noise", "words", "numbers").maker, 128),
    "niah_single_2": (Needles("essay", "words", "numbers").maker, 128),
    "niah_single_3": (Needles("essay", "words", "uuids").maker, 128),
    "niah_multikey_1": (Needles("essay", "words", "numbers", count=4).maker, 128),
    "niah_multikey_2": (Needles("needle", "words", "numbers").maker, 128),
    "niah_multikey_3": (Needles("needle", "uuids", "uuids").maker, 128),
    "niah_multivalue": (Needles("essay", "words", "numbers", per_key=4).maker, 128),
    "niah_multiquery": (Needles("essay", "words", "numbers", count=4, asked=4).maker, 128),
    "vt": (variable_maker, 30),
    "cwe": (common_maker, 120),
    "fwe": (frequent_maker, 50),
}

# task: its data's file
_ANSWERS: Mapping[str, str] = {"qa_1": "squad.json", "qa_2": "hotpotqa.json"}


def _synthetic(name: str) -> Task:
    prepare, new_tokens = _SYNTHETIC[name]

    def questions(request: Request) -> Iterator[Question]:
        written = _written(name, request)
        if written is not None:
            yield from written
            return
        maker = prepare(request)
        for seed in range(request.seed, request.seed + request.generated):
            form = fill(maker, request, new_tokens, f"ruler {name} {seed}")
            yield Question(f"{request.tokens}/{seed}", form.context, form.question, form.answers)

    return Task(f"ruler/{name}", "all_of", new_tokens, questions)


def _answered(name: str) -> Task:
    file = _ANSWERS[name]

    def questions(request: Request) -> Iterator[Question]:
        written = _written(name, request)
        if written is not None:
            yield from written
            return
        library = read_library(request.data, file) if request.data else None
        if library is None:
            raise SkippedTaskError(
                f"write {name}.jsonl with RULER's own script or save {PUBLISHED[file]} as {file}, then --data its folder"
            )
        most = ANSWERED if request.samples is None else request.samples
        for number, asked in enumerate(library.asked[:most]):
            form = fill(library.maker(asked), request, ANSWER_TOKENS, f"ruler {name} {request.seed} {number}")
            yield Question(f"{request.tokens}/{request.seed}/{number}", form.context, form.question, form.answers)

    return Task(f"ruler/{name}", "any_of", ANSWER_TOKENS, questions)


def _written(name: str, request: Request) -> Iterator[Question] | None:
    """Questions of RULER's own file of this task, of the request's length if there are several; None if there is none."""
    files = [f"{name}_{request.tokens}.jsonl", f"{name}.jsonl", f"{name}_*.jsonl", f"{name}/validation.jsonl"]
    rows = local_rows(request.data, files) if request.data else None
    if rows is None:
        return None
    return (_from_row(row, number) for number, row in enumerate(islice(rows, request.samples)))


def _from_row(found: Row, number: int) -> Question:
    where, row = found
    # Later versions of RULER keep the answer's beginning apart
    prompt = text_of(where, row, "input") + (text_of(where, row, "answer_prefix") if "answer_prefix" in row else "")
    outputs = texts_of(where, row, "outputs")
    asks = [match.start() for match in _ASKS.finditer(prompt)]
    if not asks:
        raise ValueError(f"{where}: no question of RULER's found in 'input'")
    # named by its row: their ``index`` is not always unique
    return Question(str(number), prompt[: asks[-1]], prompt[asks[-1] :], outputs)


RULER: Mapping[str, Task] = {
    **{f"ruler/{name}": _synthetic(name) for name in _SYNTHETIC},
    **{f"ruler/{name}": _answered(name) for name in _ANSWERS},
}
