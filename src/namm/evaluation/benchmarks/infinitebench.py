"""InfiniteBench (arXiv 2402.13718): twelve tasks of 100k tokens and more.

The prompts are the benchmark's for models that complete a text (its ``yarn_mistral_templates``, as on the main branch);
lengths and metrics are its own. Data: files ``<task>.jsonl`` with ``context``, ``input``, ``answer``, ``options``, or
xinrongzhang2022/InfiniteBench.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from namm.evaluation.benchmarks.base import Question, Request, Task
from namm.evaluation.benchmarks.hub import file_or_hub_rows
from namm.tasks.rows import text_of, texts_of

_LETTERS = "ABCD"
_NUMBERS = {"math_find": r"-?\d+(\.\d+)?", "math_calc": r"-?\d+", "code_run": r"-?\d+"}  # forms of an answer
_OPTIONS = "A. {A}\nB. {B}\nC. {C}\nD. {D}"
_MASKED = (
    'Below is a dialogue script where one random occurrence of a character name is replaced with "$$MASK$$", and you '
    "should try to guess who that character is.\n\n"
)

# task: before the context, after it, tokens to generate, metric
_TASKS: Mapping[str, tuple[str, str, int, str]] = {
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important information.\n\n",
        "\n\n{input}\n\nThe pass key is",
        6,
        "first_integer",
    ),
    "number_string": (
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the important information there.\n\n",
        "\n\n{input}\n\nThe sequence of digits is",
        12,
        "first_integer",
    ),
    "kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        "\n\n{input}",
        50,
        "word",
    ),
    "longbook_sum_eng": ("Summarize the book below.\n\n", "\n\nSummary:", 1200, "rouge_lsum"),
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\n",
        f"\n\nQuestion: {{input}}\n{_OPTIONS}\n\nThe letter of the correct answer is",
        40,
        "choice",
    ),
    "longbook_qa_eng": (
        "Read the book and answer the question. Be very concise in your answer.\n\n",
        "\n\nQuestion: {input}\nAnswer:",
        40,
        "f1",
    ),
    "longbook_qa_chn": ("阅读以下书籍然后回答问题。\n\n", "\n\n问题：{input}\n答案：", 40, "f1_characters"),
    "longdialogue_qa_eng": (_MASKED, "\n\nThe name that has been replaced with $$MASK$$ is likely", 40, "any_of"),
    "math_find": ("{target}\n\n", "\n\n{input}", 3, "first_number"),
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: ",
        "\nValues:",
        30_000,
        "first_values",
    ),
    "code_run": (
        "There is a function called {function} in the following Python code.\n\n",
        "\n\nPlease compute the exact value of {call}. The value of {call} is",
        5,
        "last_integer",
    ),
    "code_debug": (
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it crash.\n\n",
        f"\n\nOptions:\n{_OPTIONS}\n\nThe correct option is:",
        5,
        "option",
    ),
}


def _task(name: str) -> Task:
    before, after, new_tokens, metric = _TASKS[name]

    def questions(request: Request) -> Iterator[Question]:
        rows = file_or_hub_rows(request, name, "xinrongzhang2022/InfiniteBench", name)
        for number, (where, row) in enumerate(islice(rows, request.samples)):
            values = _values(name, where, row)
            context = _fill(before, values) + text_of(where, row, "context")
            yield Question(str(row.get("id", number)), context, _fill(after, values), _answers(name, where, row))

    return Task(f"infinitebench/{name}", metric, new_tokens, questions)


def _fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def _values(name: str, where: str, row: Mapping[str, Any]) -> dict[str, str]:
    """What a template asks for beside the context."""
    asked = text_of(where, row, "input")
    if name in ("longbook_choice_eng", "code_debug"):
        return {"input": asked} | dict(zip(_LETTERS, _options(where, row), strict=True))
    if name == "math_find":
        found = re.search(r"The (.+) of", asked)
        if not found:
            raise ValueError(f"{where}: 'input' names no number to find ('The ... of')")
        return {"input": asked, "target": f"What is the {found[1].lower()} in the following list?"}
    if name == "code_run":
        found = re.search(r"(func_[0-9]+)\(-?[0-9]+\)", asked)
        if not found:
            raise ValueError(f"{where}: 'input' calls no function ('func_1(2)')")
        return {"call": found[0], "function": found[1]}
    return {"input": asked}


def _options(where: str, row: Mapping[str, Any]) -> list[str]:
    options = row.get("options")
    if not isinstance(options, list) or len(options) != len(_LETTERS):
        raise ValueError(f"{where}: 'options' must be a list of four")
    return [str(option) for option in options]


def _answers(name: str, where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The accepted answers; of a choice its letter and its text, of a calculation all values in order."""
    answer = row.get("answer")
    listed = answer if isinstance(answer, list) else [answer]
    if listed and isinstance(listed[0], list):  # some files of the calculation have its values one list deeper
        listed = listed[0]
    answers = texts_of(where, {"answer": listed}, "answer")
    if name in _NUMBERS and not all(re.fullmatch(_NUMBERS[name], each) for each in answers):
        raise ValueError(f"{where}: 'answer' must be a number (or a list of them), found {answer!r}")
    if name in ("longbook_choice_eng", "code_debug"):
        options = _options(where, row)
        if answers[0] not in options:
            raise ValueError(f"{where}: the 'answer' {answers[0]!r} is none of the options")
        return (_LETTERS[options.index(answers[0])], answers[0])
    return answers


INFINITEBENCH: Mapping[str, Task] = {f"infinitebench/{name}": _task(name) for name in _TASKS}
