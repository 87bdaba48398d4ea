"""The tables of the documents from the measurements in benchmarks/results: python benchmarks/render.py

Writes docs/results.md, and the tables between marks in README.md and in the card of the default memory. With --check
nothing is written, and it is an error where something would change. A benchmark's file is called by the benchmark's
name, or by that and more (loss.json, loss-gemma.json): each has its section.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_tables import agreement_table, graphs_table, kernel_table, launches_table, model_table
from learning_tables import ablation_table, beside_rules_table, population_table, search_table
from serving_tables import checked_table, minutes_table, serving_table
from tables import (
    answers_table,
    bits_table,
    budgets_table,
    documents_table,
    loss_table,
    page_table,
    recall_table,
    session_table,
    speed_table,
    startup_table,
    unique,
    window_table,
    wordings_table,
)
from tune_tables import claims_table, learned_table, step_table, turns_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CARD = ROOT / "src" / "namm" / "memories" / "universal" / "README.md"
Row = dict[str, Any]


def measured(name: str) -> Row | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def measurements(benchmark: str) -> list[Row]:
    """All that a benchmark found, the file of its very name first."""
    names = sorted(path.stem for path in RESULTS.glob(f"{benchmark}*.json"))
    own = [name for name in names if name == benchmark or name.startswith(f"{benchmark}-")]
    return [found for name in own if (found := measured(name)) is not None]


def origin(found: Row) -> str:
    """How a table came about, in one line."""
    machine, versions = found["machine"], found["versions"]
    parts = [f"`{found['command']}`, {found['date']}"]
    for model in found.get("models", [found["model"]] if "model" in found else []):
        parts.append(f"{model['name']} in {model['dtype']} (weights {model['fingerprint']})")
    if memory := found.get("memory"):
        parts.append(f"memory {memory['name']} (weights {memory['fingerprint']})")
    parts.append(f"{machine.get('device') or machine['processor']}, {machine['threads']} of {machine['cores']} cores")
    if found.get("load") is not None:
        parts.append(f"load average when it began {found['load']:.1f}")
    parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    if rules := found.get("rules_from"):
        parts.append(f"the rules' rows by `{rules['command']}`, {rules['date']}, on {rules['machine']['processor']}")
    return "; ".join(parts) + ".\n"


def on(found: Row) -> str:
    """Whose numbers these are."""
    memory = f"{found['memory']['name']}{', rehearsed' if found['memory'].get('rehearsed') else ''}"
    return f"{found['model']['name']}, memory {memory}"


@dataclass(frozen=True)
class Section:
    """What is said about every measurement of one benchmark.

    Attributes:
        benchmark: its name.
        title: of one measurement.
        words: what the tables show.
        tables: one or more.
    """

    benchmark: str
    title: Callable[[Row], str]
    words: str
    tables: tuple[Callable[[Row], str], ...]


def titled(text: str) -> Callable[[Row], str]:
    return lambda found: text


SECTIONS = (
    Section(
        "loss",
        lambda found: f"Loss after {unique(found['rows'], 'tokens')[0]:,} tokens: {on(found)}",
        "Rise in loss of the next tokens over the full cache's, nats a token. A passage is read, every rule "
        "forgets while it goes in and decides once more at its end; headings say how many passages there are of "
        "each kind, where documents are fewer several from one. Every rule has the same fraction of each "
        "passage's tokens, and in the columns called equal as many as fit into the bytes that `namm` held. In "
        "brackets: on how many passages `namm` lost less than this rule; rises have long tails, and one passage "
        "can make most of a mean. `bytes` is everything the cache holds, the rule's own state included, over a "
        "full cache's keys and values.",
        (loss_table,),
    ),
    Section(
        "recall",
        lambda found: f"Recall: {on(found)}",
        "The question comes after the decision. Right: every token of the answer was the model's first choice. Of "
        "full: right answers (of long ones, as code that is repeated, right tokens) over those of the full cache. "
        "Bytes and equal as above. Pass keys are told and asked for in several wordings, of which training had "
        "the first.",
        (recall_table, wordings_table),
    ),
    Section(
        "answers",
        lambda found: f"Answers: {on(found)}",
        "Documents of benchmarks are read and decided on once, and then asked their questions one by one. The score is "
        "the task's own metric of what the model says; the likelihood is exp of the mean log-probability of the "
        "reference's first tokens. Of full: means over documents over those of the full cache; in the last lines the "
        "mean of the tasks' shares, in brackets of how many tasks, ± over tasks. Bytes as above.",
        (answers_table,),
    ),
    Section(
        "bits",
        lambda found: f"Fewer bits after {max(unique(found['rows'], 'tokens')):,} tokens: {on(found)}",
        "Keys and values of tokens that are decided on, held in 8 or 4 bits; 16 are the model's own. Bytes are all "
        "that a cache holds, over a full cache's keys and values. The rise in loss is over that with 16 bits of the "
        "same passage, at the same kept fraction.",
        (bits_table,),
    ),
    Section(
        "documents",
        lambda found: f"A text of {found['rows'][0]['tokens']:,} tokens, read once and asked often: {on(found)}",
        "Facts hidden in the text, asked for one by one, each as if the text had just been read. Right: the answer "
        "begins with the value. In all: reading (for every question, or once), saving, loading and answering.",
        (documents_table,),
    ),
    Section(
        "session",
        lambda found: f"{found['rows'][-1]['tokens']:,} tokens in one session: {on(found)}",
        "Under a budget of tokens, in pieces of 512; each line is the part since the line before. The text goes far "
        "beyond the model's window: this is about bytes and time, not about what the model still understands.",
        (session_table,),
    ),
    Section(
        "budgets",
        titled("Budgets"),
        "Aimed at, and kept after the text has been read and decided on, over texts cut at many lengths.",
        (budgets_table,),
    ),
    Section(
        "speed",
        titled("Speed"),
        "Ratios are to transformers' own full cache (sdpa and DynamicCache) of the same repetition: the median of n "
        "repetitions, and the range seen. They move with the processor and with what else it does, so measure on "
        "yours. `streaming` keeps a window and has no network to run. Launches, where they were counted, are of one "
        "layer, without and with the model's own; a block is one update interval and ends with a decision.",
        (speed_table, launches_table),
    ),
    Section(
        "gpu",
        titled("On a GPU"),
        "The engine `ragged` beside loops in float32: the largest difference of outputs, and how many tokens only one "
        "of the two holds after several updates and steps of decoding. Then kernels by themselves: of decoding, keys "
        "and values read a second over what a copy in memory reaches; of a block, what a memory makes of its attention "
        "over that attention. Then whole models over transformers' full cache (sdpa and DynamicCache) of the same "
        "repetition, median and range; a static cache takes a step of decoding as one CUDA graph, and an update comes "
        "every 256 tokens.",
        (agreement_table, kernel_table, model_table, graphs_table),
    ),
    Section(
        "serving",
        lambda found: f"Serving: {on(found)}",
        "Clients that ask `namm serve` without a pause, which takes one request at a time or many. Asked of the "
        "budget: bytes that the requests of all clients at once, and the documents, may come to hold by the server's "
        "reckoning, over those that it may hold. Tokens and answers a second while all clients ask; seconds from a "
        "request's first try, with all that it waits after a 429, median and in brackets the 95th percentile. Wrong: "
        "not what a single run says. MiB are of all caches, documents included, and in the last column of the process.",
        (serving_table, checked_table, minutes_table),
    ),
    Section(
        "startup",
        titled("Starting"),
        "Every program in a process of its own, in turn.",
        (startup_table,),
    ),
    Section(
        "window",
        titled("Past the model's window"),
        "Loss of a text's last 256 tokens with more and more of it before them, positions as trained or stretched "
        "(NTK-aware); in brackets the fraction kept. One text, so there is no interval.",
        (window_table,),
    ),
    Section(
        "ablation",
        titled("What each feature is worth"),
        "Variants of the memory's configuration, trained for equal steps on the same recordings and judged on "
        "passages of unseen documents. After every block the tokens of all recorded heads are ranked together: the "
        "part of all later influence (how far heads' outputs would change without a token) that the best quarter and "
        "the best eighth hold, ± over training seeds, and how many of the 5% and of the 1% most influential tokens "
        "are among them. Bytes are the state of a token and head. The last column is the difference by passage, ± "
        "over passages.",
        (ablation_table,),
    ),
    Section(
        "search",
        lambda found: f"Evolution from {found['memory']['name']}, beside random search",
        "From one start, n seeds, equally many samples scored for candidates. Judged on tasks that no stage has and on "
        "texts that nothing was chosen by: the mean log-probability of the answer above the start's at equal kept "
        "fraction, and the rise in loss of running text over the full cache's. ± over seeds, each on its own samples. "
        "Where hand-designed rules stand beside, the stages' own tasks too, on other samples: log-probability of the "
        "answer less the full cache's, ± over all samples.",
        (search_table, beside_rules_table),
    ),
    Section(
        "evolution",
        titled("Candidates of an evolution"),
        "Scored a second: the context read once until the first eviction, beside one by one from the beginning; median "
        "and range.",
        (population_table,),
    ),
    Section(
        "tune",
        lambda found: f"Learning under forgetting: {on(found)}",
        "Adapters that learned to answer questions about long texts, on the full cache or under the memory, and the "
        "base model; all asked about other texts, with the full cache and with what the memory keeps. Right: every "
        "token of the answer was the model's first choice. Of each context the mean over seeds of learning (and over "
        "the questions about it), ± over contexts; then differences, paired by context, and ± over seeds alone.",
        (learned_table, claims_table),
    ),
    Section(
        "in_turn",
        lambda found: f"Model and memory in turn: {on(found)}",
        "The model learns to answer under the memory, then the memory is refined on the tuned model, and so on; after "
        "each step the tuned model is asked about held-out texts, with its full cache and with what that step's memory "
        "keeps. Right: as above; ± over contexts, differences from the step before paired by context. It is one run of "
        "learning: how much another would differ is not in the ±.",
        (turns_table,),
    ),
    Section(
        "tune_step",
        lambda found: f"A step of learning: {on(found)}",
        "Forward and backward of one text: on the full cache in one call (sdpa), its layers checkpointed; under the "
        "memory, and where nothing is forgotten, in pieces that are computed again in the backward pass, and within "
        "them the layers too, but for the last kind. Bytes are those of all tensors that a step adds: when the forward "
        "pass is done, and at most. Seconds: medians, and the ranges seen.",
        (step_table,),
    ),
    Section("page", titled("The page of `namm inspect`"), "In Chromium without a window; one run.", (page_table,)),
)


def page() -> str:
    parts = [
        "# Results\n",
        "Written by `make results` from the files in `benchmarks/results`, each of which the command under a "
        "table's title writes. ± is half of Student's 95% interval of the mean (or of a ratio of means) over n; "
        "without ±, n is 1 or it is no mean.\n",
    ]
    for section in SECTIONS:
        for number, found in enumerate(measurements(section.benchmark)):
            words = [] if number else [section.words + "\n"]
            tables = [table(found) for table in section.tables]
            parts += [f"## {section.title(found)}\n", *words, *filter(None, tables), origin(found)]
    return "\n".join(parts)


def between_marks(path: Path, name: str, table: str) -> str:
    """The file's text with a table between its marks."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin, written by make results -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path} lacks the marks {begin} and {end}")
    return f"{text[: text.index(begin)]}{begin}\n{table}{text[text.index(end) :]}"


def documents() -> dict[Path, str]:
    """Every file that is written, with its text."""
    found = measured("loss")
    assert found is not None, "benchmarks/results/loss.json is missing: python benchmarks/loss.py"
    short = loss_table(found, ("namm", "kvzip", "h2o", "ada-snapkv", "streaming"), wins=False)
    pages = {ROOT / "docs" / "results.md": page()}
    return pages | {path: between_marks(path, "loss", short) for path in (ROOT / "README.md", CARD)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    for path, text in documents().items():
        if check and path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} does not fit the measurements: make results")
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
