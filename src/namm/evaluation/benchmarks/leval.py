"""L-Eval (arXiv 2307.11088): 20 tasks, each with several instructions about one long document.

The prompts are the benchmark's own for a model that is not tuned to follow instructions (``mpt-test.py``). Data: files
``<task>.jsonl`` with ``input``, ``instructions``, ``outputs``, ``evaluation``, or L4NLP/LEval. Rows that L-Eval gives
to human or model judges are left out, as in its own n-gram scores. It differs from the publication in these:

- Summaries and such (``rouge``) are scored by ROUGE-L alone, of the package that LongBench takes.
- Every task is published with 512 new tokens. Where the references are much shorter, so is the limit here.
- Of sci_fi's two questions the one about the document is asked, not the one about the real world without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from namm.evaluation.benchmarks.base import Question, Request, Task
from namm.evaluation.benchmarks.hub import file_or_hub_rows
from namm.tasks.rows import text_of

_ANY = (
    "Now you are given a very long document. Please follow the instruction after this document. These instructions may "
    "include summarizing a document, answering questions based on the document, or writing a required paragraph. "
)
_EXAM = (
    "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice "
    "questions, there is only a sinlge correct option. Please only provide the letter corresponding to the answer (like "
    "A or B) when answering. For other questions, please directly give the concise and accurate answer. "
)
_LETTERS = (
    "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice "
    "questions, there could be a sinlge correct option or multiple correct options. Please only provide the letter "
    "corresponding to the answer (like A or AB) when answering. "
)
_EXAMPLES = (
    "Given several question answer pairs, you need to follow a similar format to answer the last question. Make sure the "
    "response is end with The answer is _ . "
)
_TOPICS = (
    "Below is a record of our previous conversation on many different topics. You are the ASSISTANT, and I am the USER. "
    "At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize each "
    "<TOPIC>. At the end of the record, I will ask you to retrieve the first/second/third topic names. Now the record "
    "start. "
)
_CODE = (
    "Now you are given a code base consisting of a large amount of functions and the corresponding comments. In the end, "
    "I will call some functions defined in the code base. Please carefully read these codes and comments and answer the "
    "question."
)
_FICTION = (
    'Now you are given a scientific fiction. I will ask you some questions and the answer should be "True" or "False". '
    "Notice that you should answer the question based on the evidence in the document instead of your background knowledge."
)

_DOCUMENT = "Document is as follows. "  # these two stand around the document
_ASKED = " \nQuestion: {instruction} \nThe answer is: "
_LENGTH = " \nQuestion: {instruction} The suggested output length is around {words} words. \nThe answer is: "  # of the reference
_BARE = "\n\n{instruction}\nThe answer is: "

# task: metric, tokens to generate, what stands before the document, what after it
_TASKS: Mapping[str, tuple[str, int, str, str]] = {
    "coursera": ("letters", 32, _LETTERS + _DOCUMENT, _ASKED),
    "quality": ("letter", 32, _EXAM + _DOCUMENT, _ASKED),
    "tpo": ("letter", 32, _EXAM + _DOCUMENT, _ASKED),
    "sci_fi": ("truth", 32, _FICTION + _DOCUMENT, _ASKED),
    "gsm100": ("solution", 512, _EXAMPLES, _BARE),
    "codeU": ("printed", 512, _CODE, _BARE),
    "topic_retrieval_longchat": ("first_line", 32, _TOPICS, _BARE),
    "gov_report_summ": ("rouge_l", 512, _ANY + _DOCUMENT, _LENGTH),
    "meeting_summ": ("rouge_l", 128, _ANY + _DOCUMENT, _LENGTH),
    "paper_assistant": ("rouge_l", 256, _ANY + _DOCUMENT, _LENGTH),
    "news_summ": ("rouge_l", 256, _ANY + _DOCUMENT, _LENGTH),
    "patent_summ": ("rouge_l", 256, _ANY + _DOCUMENT, _LENGTH),
    "review_summ": ("rouge_l", 256, _ANY + _DOCUMENT, _LENGTH),
    "tv_show_summ": ("rouge_l", 256, _ANY + _DOCUMENT, _LENGTH),
    "narrative_qa": ("f1", 32, _ANY + _DOCUMENT, _LENGTH),
    "natural_question": ("f1", 32, _ANY + _DOCUMENT, _LENGTH),
    "multidoc_qa": ("f1", 64, _ANY + _DOCUMENT, _LENGTH),
    "legal_contract_qa": ("f1", 128, _ANY + _DOCUMENT, _LENGTH),
    "financial_qa": ("f1", 64, _ANY + _DOCUMENT, _LENGTH),
    "scientific_qa": ("f1", 64, _ANY + _DOCUMENT, _LENGTH),
}
_JUDGED = ("human", "LLM")  # by whom; such rows have no metric


def _task(name: str) -> Task:
    metric, new_tokens, before, after = _TASKS[name]

    def questions(request: Request) -> Iterator[Question]:
        rows = file_or_hub_rows(request, name, "L4NLP/LEval")
        count = 0
        for number, (where, row) in enumerate(rows):
            if row.get("evaluation") in _JUDGED:
                continue
            context = before + text_of(where, row, "input")
            instructions, outputs = _texts(where, row, "instructions"), _texts(where, row, "outputs")
            if len(instructions) != len(outputs):
                raise ValueError(f"{where}: 'instructions' and 'outputs' must be lists of the same length")
            for index, (instruction, output) in enumerate(zip(instructions, outputs, strict=True)):
                if count == request.samples:
                    return
                count += 1
                words = str(len(output.split()))
                asked = after.replace("{words}", words).replace("{instruction}", instruction)
                yield Question(f"{number}/{index}", context, asked, (output,))

    return Task(f"leval/{name}", metric, new_tokens, questions)


def _texts(where: str, row: Mapping[str, Any], key: str) -> list[str]:
    texts = row.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: {key!r} must be a list of texts, none of them blank")
    return texts


LEVAL: Mapping[str, Task] = {f"leval/{name}": _task(name) for name in _TASKS}
