"""LongBench (arXiv 2308.14508): 21 tasks with their published prompts, lengths and metrics.

The prompts are the benchmark's own (``dataset2prompt.json``). Data: files ``<task>.jsonl``, or THUDM/LongBench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from namm.evaluation.benchmarks.base import Question, Request, Task
from namm.evaluation.benchmarks.hub import file_or_hub_rows
from namm.tasks.rows import text_of, texts_of

_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the "
    "answer and do not output any other words.\n\nQuestion: {input}\nAnswer:"
)
_PHRASE = "as concisely as you can, using a single phrase if possible. Do not provide any explanation."
_ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on "
    'the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", or '
    '"unanswerable". Do not provide any explanation.'
)
_LINE = ("\n",)

# task: prompt, tokens to generate, metric, stops
_TASKS: Mapping[str, tuple[str, int, str, tuple[str, ...]]] = {
    "narrativeqa": (
        f"You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
        f"{_PHRASE}\n\nStory: {{context}}\n\nNow, answer the question based on the story {_PHRASE}\n\n"
        "Question: {input}\n\nAnswer:",
        128,
        "f1",
        (),
    ),
    "qasper": (
        f"You are given a scientific article and a question. Answer the question {_ARTICLE}\n\nArticle: {{context}}\n\n "
        f"Answer the question based on the above article {_ARTICLE}\n\nQuestion: {{input}}\n\nAnswer:",
        128,
        "f1",
        (),
    ),
    "multifieldqa_en": (
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the "
        "above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
        64,
        "f1",
        (),
    ),
    "multifieldqa_zh": (
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。"
        "\n\n问题：{input}\n回答：",
        64,
        "f1_zh",
        (),
    ),
    "hotpotqa": (_PASSAGES, 32, "f1", ()),
    "2wikimqa": (_PASSAGES, 32, "f1", ()),
    "musique": (_PASSAGES, 32, "f1", ()),
    "dureader": (
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
        "rouge_l_zh",
        (),
    ),
    "gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{context}\n\n"
        "Now, write a one-page summary of the report.\n\nSummary:",
        512,
        "rouge_l",
        (),
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or "
        "more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one "
        "or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        "rouge_l",
        (),
    ),
    "multi_news": (
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\nNow, write a "
        "one-page summary of all the news.\n\nSummary:",
        512,
        "rouge_l",
        (),
    ),
    "vcsum": (
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
        512,
        "rouge_l_zh",
        (),
    ),
    "trec": (
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
        64,
        "classification",
        _LINE,
    ),
    "triviaqa": (
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. The "
        "following are some examples.\n\n{context}\n\n{input}",
        32,
        "f1",
        _LINE,
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
        128,
        "rouge_l",
        _LINE,
    ),
    "lsht": ("请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}", 64, "classification", _LINE),
    "passage_count": (
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, "
        "how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count of unique "
        "paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, 3, and so "
        "on.\n\nThe final answer is: ",
        32,
        "count",
        (),
    ),
    "passage_retrieval_en": (
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is "
        "from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that "
        'the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
        "retrieval",
        (),
    ),
    "passage_retrieval_zh": (
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n下面是一个摘要\n\n{input}\n\n"
        '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
        "retrieval_zh",
        (),
    ),
    "lcc": ("Please complete the code given below. \n{context}Next line of code:\n", 64, "code_similarity", ()),
    "repobench-p": (
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
        64,
        "code_similarity",
        (),
    ),
}
# "chat models are better off without build prompts on these tasks", says LongBench's own pred.py
_GOING_ON = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})


def longbench_task(
    name: str, dataset: str, template: str, new_tokens: int, metric: str, stop: tuple[str, ...] = ()
) -> Task:
    """A task of LongBench's format: a template around ``context`` and (if it has a place for it) ``input``.

    Args:
        name: ``benchmark/task``; the task's file and the dataset's configuration bear the second part.
        dataset: of the hub.
    """
    before, after = template.split("{context}")
    own = name.split("/")[-1]

    def questions(request: Request) -> Iterator[Question]:
        rows = file_or_hub_rows(request, own, dataset)
        for number, (where, row) in enumerate(islice(rows, request.samples)):
            answers = texts_of(where, row, "answers")
            classes = texts_of(where, row, "all_classes", least=int(metric == "classification"))
            asked = after.replace("{input}", text_of(where, row, "input")) if "{input}" in after else after
            yield Question(str(number), before + text_of(where, row, "context"), asked, answers, classes)

    return Task(name, metric, new_tokens, questions, stop, own in _GOING_ON)


LONGBENCH: Mapping[str, Task] = {
    f"longbench/{name}": longbench_task(f"longbench/{name}", "THUDM/LongBench", *settings)
    for name, settings in _TASKS.items()
}
