"""ChouBun (arXiv 2410.13166): four Japanese tasks on articles of Wikipedia and reports of companies.

Prompts, lengths and metrics are the benchmark's own. Data: files ``<task>.jsonl`` in the format of LongBench
(``context``, ``input``, ``answers``), or SakanaAI/ChouBun.
"""

from __future__ import annotations

from collections.abc import Mapping

from namm.evaluation.benchmarks.base import Task
from namm.evaluation.benchmarks.longbench import longbench_task

_SPAN = "以下の文書を注意深く読み、続く質問に答えてください。回答は必ず文書内の連続した文字列（テキストスパン）から抽出してください。"
_ASKED = "### 文書 ###\n{context}\n### 質問 ###\n{input}\n### 回答 ###\n"

# task: prompt, tokens to generate, metric
_TASKS: Mapping[str, tuple[str, int, str]] = {
    "wiki_qa": (f"{_SPAN}\n{_ASKED}", 64, "f1_ja"),
    "edinet_qa": (f"{_SPAN}\n{_ASKED}", 64, "f1_ja"),
    "corp_sec_qa": (f"{_SPAN}{_ASKED}", 64, "f1_ja"),  # published without the line break
    "corp_sec_sum": (
        "以下の文書を要約してください。要約は短く簡潔にしてください。また、文書の全体的な考え方、傾向、洞察を反映させてください。\n"
        "### 文書 ###\n{context}\n### 要約 ###\n",
        128,
        "rouge_l_ja",
    ),
}


CHOUBUN: Mapping[str, Task] = {
    f"choubun/{name}": longbench_task(f"choubun/{name}", "SakanaAI/ChouBun", *settings)
    for name, settings in _TASKS.items()
}
