"""The tables of the documents from the measurements in benchmarks/results: python benchmarks/render.py

Writes docs/results.md, and the tables between marks in README.md and in the card of the default memory. With --check
nothing is written, and it is an error where something would change. Intervals are Student's, 95%, from the values.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from namm.support.plotting import markdown_table
from namm.support.statistics import mean_interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CARD = ROOT / "src" / "namm" / "memories" / "smollm2-135m" / "README.md"
RULES = ("namm", "h2o", "snapkv", "tova", "streaming", "l2", "random")
Row = dict[str, Any]


def measured(name: str) -> Row | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def unique(rows: Iterable[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def mean(rows: Iterable[Row], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


def interval(values: list[float], form: str) -> str:
    average, half = mean_interval(values)
    return f"{average:{form}}" if math.isnan(half) else f"{average:{form}} ± {half:{form.lstrip('+')}}"


def middle(values: list[float], form: str = ".2f") -> str:
    """Median and the range seen."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def origin(found: Row) -> str:
    """How a table came about, in one line."""
    machine, versions = found["machine"], found["versions"]
    parts = [f"`{found['command']}`, {found['date']}"]
    if "model" in found:
        model, memory = found["model"], found["memory"]
        parts.append(f"{model['name']} in {model['dtype']} (weights {model['fingerprint']})")
        parts.append(f"memory {memory['name']} (weights {memory['fingerprint']})")
    parts.append(f"{machine.get('device') or machine['processor']}, {machine['threads']} of {machine['cores']} cores")
    if found.get("load") is not None:
        parts.append(f"load average when it began {found['load']:.1f}")
    parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return "; ".join(parts) + ".\n"


def loss_table(found: Row, rules: tuple[str, ...] = RULES, wins: bool = True) -> str:
    """Rise over the full cache's loss, and bytes: both by passage, then the mean.

    Args:
        wins: say beside every other rule on how many passages the memory lost less.
    """
    rows = found["rows"]
    full = {(row["kind"], row["passage"]): row for row in select(rows, policy="full")}

    def rises(chosen: list[Row]) -> list[float]:
        return [row["loss"] - full[row["kind"], row["passage"]]["loss"] for row in chosen]

    def size(chosen: list[Row]) -> str:
        shares = [row["held_bytes"] / full[row["kind"], row["passage"]]["kv_bytes"] for row in chosen]
        return f"{statistics.mean(shares):.2f}"

    rules = tuple(rule for rule in rules if select(rows, policy=rule))
    lines = []
    for kind in unique(rows, "kind"):
        for aim in unique(select(rows, policy="namm"), "aim"):
            own = select(rows, kind=kind, aim=aim)
            chosen = {rule: select(own, policy=rule) for rule in rules}
            memory = rises(chosen["namm"])
            cells = []
            for rule, its in chosen.items():
                better = sum(mine < other for mine, other in zip(memory, rises(its), strict=True))
                cells.append(interval(rises(its), "+.3f") + (f" ({better})" if wins and rule != "namm" else ""))
            sizes = [size(chosen[rule]) for rule in ("namm", "h2o") if rule in chosen]
            kept = f"{mean(chosen['namm'], 'kept_fraction'):.3f}"
            lines.append((kind, str(len(memory)), kept, *sizes, *cells))
    bytes_of = ["bytes, namm", *(["bytes, h2o"] if "h2o" in rules else [])]
    return markdown_table(("texts", "n", "tokens kept", *bytes_of, *rules), lines)


def recall_table(found: Row) -> str:
    """Right answers as counts, and the log-probability of an answer's tokens."""
    rows = found["rows"]
    lines = []
    for task in unique(rows, "task"):
        for tokens in unique(select(rows, task=task), "tokens"):
            own = select(rows, task=task, tokens=tokens)
            for aim, policy in dict.fromkeys((row["aim"], row["policy"]) for row in own):
                chosen = select(own, aim=aim, policy=policy)
                lines.append(
                    (
                        task.replace("_", " "),
                        f"{tokens:,}",
                        policy,
                        f"{mean(chosen, 'kept_fraction'):.3f}",
                        f"{statistics.mean(row['held_bytes'] / row['full_bytes'] for row in chosen):.2f}",
                        f"{sum(row['correct'] for row in chosen)} of {len(chosen)}",
                        interval([row["log_probability"] for row in chosen], ".2f"),
                    )
                )
    return markdown_table(
        ("task", "tokens", "policy", "tokens kept", "bytes", "right", "log-probability a token"), lines
    )


def speed_table(found: Row) -> str:
    """Ratios to the full cache of the same repetition."""
    rows = found["rows"]
    lines = []
    for tokens in unique(rows, "tokens"):
        full = select(rows, tokens=tokens, cache="full")
        for cache in unique(rows, "cache"):
            own = select(rows, tokens=tokens, cache=cache)
            ratios = {
                name: [one[name] / other[name] for one, other in zip(own, full, strict=True)]
                for name in ("prefill_seconds", "decode_seconds", "held_bytes")
            }
            lines.append(
                (
                    f"{tokens:,}",
                    cache,
                    str(len(own)),
                    f"{mean(own, 'kept_fraction'):.3f}",
                    f"{statistics.median(row['prefill_seconds'] for row in own):.2f}",
                    *([middle(ratios["prefill_seconds"])] if cache != "full" else ["1"]),
                    f"{1000 * statistics.median(row['decode_seconds'] for row in own):.1f}",
                    *([middle(ratios["decode_seconds"])] if cache != "full" else ["1"]),
                    f"{statistics.mean(ratios['held_bytes']):.2f}",
                )
            )
    headings = ("tokens", "cache", "n", "tokens kept", "prefill s", "of full", "decode ms a token", "of full", "bytes")
    return markdown_table(headings, lines)


def startup_table(found: Row) -> str:
    """Seconds of each program, and how they compare to what they start from, within a repetition."""
    rows = found["rows"]
    seconds = {name: [row["seconds"] for row in select(rows, program=name)] for name in unique(rows, "program")}
    lines = [(f"`{name}`", str(len(values)), middle(values, ".3f")) for name, values in seconds.items()]

    def compare(one: str, sign: str, other: str, form: str) -> None:
        pairs = zip(seconds[one], seconds[other], strict=True)
        values = [mine / its if sign == "/" else mine - its for mine, its in pairs]
        lines.append((f"`{one}` {sign} `{other}`", str(len(values)), middle(values, form)))

    compare("import namm", "/", "import torch", ".3f")
    compare("namm --help", "-", "python -c pass", ".3f")
    return markdown_table(("program", "n", "seconds (or a ratio), median and range"), lines)


def search_table(found: Row) -> str:
    rows = found["rows"]
    lines = []
    for strategy in unique(rows, "strategy"):
        own = select(rows, strategy=strategy)
        start, final = ([row[end]["fitness"] for row in own] for end in ("start", "final"))
        gains = [after - before for before, after in zip(start, final, strict=True)]
        counts = "/".join(str(count) for count in unique(own, "candidates"))
        cells = (interval(start, ".3f"), interval(final, ".3f"), interval(gains, "+.3f"))
        lines.append((strategy, counts, str(len(own)), *cells))
    return markdown_table(("search", "candidates", "n", "fitness before", "fitness after", "gain"), lines)


def population_table(found: Row) -> str:
    rows = found["rows"]
    lines = []
    for tokens in unique(rows, "tokens"):
        own = select(rows, tokens=tokens)
        ratios = [row["one_by_one_seconds"] / row["batched_seconds"] for row in own]
        lines.append((f"{tokens:,}", str(own[0]["population"]), str(len(own)), middle(ratios)))
    return markdown_table(("tokens", "members", "n", "times as fast in one batch, median and range"), lines)


def page_table(found: Row) -> str:
    def seconds(row: Row, name: str) -> str:
        return f"{row[name]:.2f}" if name in row else ""

    lines = [
        (f"{row['tokens']:,}", f"{row['seconds']:.0f}", f"{row['bytes'] / 2**20:.2f}")
        + (seconds(row, "first_paint_seconds"), seconds(row, "usable_seconds"))
        for row in found["rows"]
    ]
    return markdown_table(("tokens", "made in s", "MiB", "first paint s", "usable s"), lines)


def window_table(found: Row) -> str:
    rows = found["rows"]
    lengths = unique(rows, "tokens")
    lines = []
    for factor in unique(rows, "factor"):
        for policy in unique(rows, "policy"):
            own = {row["tokens"]: row for row in select(rows, factor=factor, policy=policy)}
            positions = "as trained" if factor == 1 else f"stretched by {factor:g}"
            cells = [f"{own[n]['loss']:.3f} ({own[n]['kept_fraction']:.2f})" for n in lengths]
            lines.append((f"{policy}, {positions}", *cells))
    return markdown_table(("cache", *(f"{length:,} tokens" for length in lengths)), lines)


Table = Callable[[Row], str]
SECTIONS: tuple[tuple[str, str, str, Table], ...] = (
    (
        "loss",
        "Loss by policy after 1,280 tokens",
        "Rise in loss of the next 256 tokens over the full cache's, nats a token. A passage is read, every rule "
        "forgets while it goes in and decides once more at its end; n passages of each kind, where documents are fewer "
        "(there are four books) several from one. The other rules keep of each passage as many tokens as `namm` did. "
        "In brackets: on how many of the passages `namm` lost less than this rule; rises have long tails, and one "
        "passage can make most of a mean. `bytes` is everything the cache holds, the rule's own state included, over a "
        "full cache's keys and values.",
        loss_table,
    ),
    ("loss-4096", "Loss by policy after 4,096 tokens", "As above.", loss_table),
    (
        "recall",
        "Pass keys",
        "A number hidden in prose; the question comes after the decision. Right: every token of the answer was the "
        "model's first choice.",
        recall_table,
    ),
    (
        "loss-refined",
        "Loss with the memory smollm2-135m-refined",
        "The memory that the default was made from; passages as in the first table.",
        loss_table,
    ),
    (
        "loss-distilled",
        "Loss with the memory smollm2-135m-distilled",
        "The first memory, distilled only; passages as in the first table.",
        loss_table,
    ),
    (
        "speed",
        "Speed",
        "Ratios are to transformers' own full cache (sdpa and DynamicCache) of the same repetition: the median of n "
        "repetitions, and the range seen. They move with the processor and with what else it does, so measure on "
        "yours. `streaming` keeps a window and has no network to run.",
        speed_table,
    ),
    (
        "startup",
        "Starting",
        "Every program in a process of its own, in turn.",
        startup_table,
    ),
    (
        "window",
        "Past the model's window",
        "Loss of a text's last 256 tokens with more and more of it before them, positions as trained or stretched "
        "(NTK-aware); in brackets the fraction kept. One text, so there is no interval.",
        window_table,
    ),
    (
        "search",
        "Evolution beside random search",
        "From one start, on test samples that nothing was chosen by; n seeds.",
        search_table,
    ),
    (
        "evolution",
        "A population in one batch",
        "Candidates of an evolution scored together, beside one by one.",
        population_table,
    ),
    ("page", "The page of `namm inspect`", "In Chromium without a window; one run.", page_table),
)


def page() -> str:
    parts = [
        "# Results\n",
        "Written by `make results` from the files in `benchmarks/results`, each of which the command under a table's "
        "title writes. ± is half of Student's 95% interval of the mean over n; without ±, n is 1 or it is no mean.\n",
    ]
    for name, title, words, table in SECTIONS:
        found = measured(name)
        if found is not None:
            parts += [f"## {title}\n", words + "\n", table(found), origin(found)]
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
    short = loss_table(found, ("namm", "h2o", "snapkv", "streaming"), wins=False)
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
