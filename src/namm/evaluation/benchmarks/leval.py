"""L-Eval (arXiv 2307.11088): several instructions about one long document.

Data: files ``<task>.jsonl`` with ``input``, ``instructions``, ``outputs``, or L4NLP/LEval. Open questions are scored by
ROUGE-L, closed ones by whether the answer is contained, which for topic names is what the benchmark's exam comes to.
The prompt is a completion: L-Eval's own are chat prompts for instruction-tuned models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from namm.evaluation.benchmarks.base import Question, Request, Task, file_or_hub_rows, text_of

# task: metric, tokens to generate
_TASKS: Mapping[str, tuple[str, int]] = {
    "gov_report_summ": ("rouge_l", 512),
    "meeting_summ": ("rouge_l", 128),
    "paper_assistant": ("rouge_l", 256),
    "news_summ": ("rouge_l", 256),
    "patent_summ": ("rouge_l", 256),
    "review_summ": ("rouge_l", 256),
    "tv_show_summ": ("rouge_l", 256),
    "narrative_qa": ("f1", 32),
    "natural_question": ("f1", 32),
    "multidoc_qa": ("f1", 64),
    "legal_contract_qa": ("f1", 128),
    "financial_qa": ("f1", 64),
    "scientific_qa": ("f1", 64),
    "topic_retrieval_longchat": ("any_of", 32),
}


def _task(name: str) -> Task:
    metric, new_tokens = _TASKS[name]

    def questions(request: Request) -> Iterator[Question]:
        rows = file_or_hub_rows(request, name, "L4NLP/LEval", name, "test")
        count = 0
        for number, (where, row) in enumerate(rows):
            instructions, outputs = row.get("instructions"), row.get("outputs")
            if not isinstance(instructions, list) or not isinstance(outputs, list) or len(instructions) != len(outputs):
                raise ValueError(f"{where}: 'instructions' and 'outputs' must be lists of the same length")
            context = text_of(where, row, "input")
            for index, (instruction, output) in enumerate(zip(instructions, outputs, strict=True)):
                if count == request.samples:
                    return
                count += 1
                asked = f"\n\nInstruction: {instruction}\nAnswer:"
                yield Question(f"{number}/{index}", context, asked, (str(output),))

    return Task(f"leval/{name}", metric, new_tokens, questions)


LEVAL: Mapping[str, Task] = {f"leval/{name}": _task(name) for name in _TASKS}
