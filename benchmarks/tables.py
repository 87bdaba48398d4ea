"""One table for each kind of measurement, made from its rows.

± is half of Student's 95% interval of a mean over samples (of a ratio of means where a score is told as a share).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from namm.support.plotting import markdown_table
from namm.support.statistics import mean_interval, ratio_interval

Row = dict[str, Any]
WITHIN = 0.02  # of the fraction aimed at, a budget is said to hold
TOKEN_BY_TOKEN = ("continuation", "repeated_code")  # answers too long to be right in every token


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


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


def share(values: list[float], references: list[float]) -> str:
    """Mean of values over the mean of their references, empty where that is 0."""
    ratio, half = ratio_interval(values, references)
    if math.isnan(ratio):
        return ""
    return f"{ratio:.2f}" if math.isnan(half) else f"{ratio:.2f} ± {half:.2f}"


def rules_of(rows: Iterable[Row], wanted: Iterable[str] | None = None) -> list[str]:
    """The policies that were measured beside the full cache, the memory first."""
    found = ["namm", *(name for name in unique(rows, "policy") if name not in ("full", "namm"))]
    return found if wanted is None else [name for name in wanted if name in found]


def loss_table(found: Row, rules: Iterable[str] | None = None, wins: bool = True) -> str:
    """Rise over the full cache's loss by kind of text, and over all; all of it by passage, then the mean.

    Args:
        rules: those to show; None: all.
        wins: say beside every other rule on how many passages the memory lost less.
    """
    rows = found["rows"]
    full = {(row["kind"], row["passage"]): row for row in select(rows, policy="full")}
    kinds = unique(rows, "kind")
    by_bytes = any("equal" in row for row in rows)

    def rises(chosen: list[Row]) -> list[float]:
        return [row["loss"] - full[row["kind"], row["passage"]]["loss"] for row in chosen]

    def size(chosen: list[Row]) -> str:
        shares = [row["held_bytes"] / full[row["kind"], row["passage"]]["kv_bytes"] for row in chosen]
        return f"{statistics.mean(shares):.2f}"

    def cell(chosen: list[Row], rule: str) -> str:
        text = interval(rises(chosen), "+.3f")
        if not wins or rule == "namm":
            return text
        passages = [(row["kind"], row["passage"]) for row in chosen]
        return f"{text} ({sum(memory[name] < its for name, its in zip(passages, rises(chosen), strict=True))})"

    lines = []
    for aim in unique(select(rows, policy="namm"), "aim"):
        own = select(rows, policy="namm", aim=aim)
        memory = dict(zip([(row["kind"], row["passage"]) for row in own], rises(own), strict=True))
        for rule in rules_of(rows, rules):
            chosen = select(rows, policy=rule, aim=aim, equal=None)
            line = [rule, f"{mean(chosen, 'kept_fraction'):.3f}", size(chosen), cell(chosen, rule)]
            if len(kinds) > 1:
                line += [cell(select(chosen, kind=kind), rule) for kind in kinds]
            if by_bytes:
                equal = select(rows, policy=rule, aim=aim, equal="bytes")
                line += [size(equal), cell(equal, rule)] if equal else ["", ""]
            lines.append(tuple(line))
    by_kind = [f"{kind} ({len(select(rows, policy='full', kind=kind))})" for kind in kinds]
    headings = ["policy", "tokens kept", "bytes", *([f"all ({len(full)})"] if len(kinds) > 1 else []), *by_kind]
    return markdown_table([*headings, *(["bytes, equal", "all, equal"] if by_bytes else [])], lines)


def recall_table(found: Row) -> str:
    """Right answers as counts, the score as a share of the full cache's, and the log-probability of an answer's tokens.

    Of a long answer the score is the part of its tokens that were the model's first choice.
    """
    rows = found["rows"]
    by_bytes = any("equal" in row for row in rows)
    lines = []
    for task in unique(rows, "task"):
        for tokens in unique(select(rows, task=task), "tokens"):
            own = select(rows, task=task, tokens=tokens)
            full = {row["seed"]: score(row) for row in select(own, policy="full")}

            def of_full(chosen: list[Row], full: dict[int, float] = full) -> str:
                return share([score(row) for row in chosen], [full[row["seed"]] for row in chosen])

            for aim, policy in dict.fromkeys((row["aim"], row["policy"]) for row in own):
                chosen = select(own, aim=aim, policy=policy, equal=None)
                line = [
                    task.replace("_", " "),
                    f"{tokens:,}",
                    policy,
                    f"{mean(chosen, 'kept_fraction'):.3f}",
                    size_of(chosen),
                    f"{sum(row['correct'] for row in chosen)} of {len(chosen)}",
                    of_full(chosen),
                    interval([row["log_probability"] for row in chosen], ".2f"),
                ]
                if by_bytes:
                    equal = select(own, aim=aim, policy=policy, equal="bytes")
                    line += [size_of(equal), of_full(equal)] if equal else ["", ""]
                lines.append(tuple(line))
    headings = ("task", "tokens", "policy", "tokens kept", "bytes", "right", "of full", "log-probability a token")
    return markdown_table([*headings, *(["bytes, equal", "of full, equal"] if by_bytes else [])], lines)


def wordings_table(found: Row) -> str:
    """Of pass keys: right answers by wording, all lengths together; empty where wordings were not told apart."""
    rows = [row for row in found["rows"] if "wording" in row and "equal" not in row]
    if not rows:
        return ""
    lines = []
    for aim, policy in dict.fromkeys((row["aim"], row["policy"]) for row in rows):
        own = select(rows, aim=aim, policy=policy)
        counts = [[row["correct"] for row in select(own, wording=name)] for name in unique(rows, "wording")]
        cells = [f"{sum(right)} of {len(right)}" for right in counts]
        lines.append((policy, f"{mean(own, 'kept_fraction'):.3f}", *cells))
    return markdown_table(("pass key", "tokens kept", *unique(rows, "wording")), lines)


def answers_table(found: Row) -> str:
    """By task the metric and the likelihood of the reference as shares of the full cache's; then means over tasks."""
    rows = found["rows"]
    by_bytes = any("equal" in row for row in rows)
    full = {(row["task"], row["document"]): row for row in select(rows, policy="full")}

    def of_full(chosen: list[Row], name: str) -> tuple[float, str]:
        pairs = [row[name] for row in chosen], [full[row["task"], row["document"]][name] for row in chosen]
        return ratio_interval(*pairs)[0], share(*pairs)

    def over_tasks(chosen: list[Row], name: str) -> str:
        ratios = [of_full(select(chosen, task=task), name)[0] for task in unique(rows, "task")]
        usable = [ratio for ratio in ratios if not math.isnan(ratio)]
        return f"{interval(usable, '.3f')} ({len(usable)})" if usable else ""

    lines = []
    settings = dict.fromkeys((row["aim"], row["policy"]) for row in rows)
    for task in (*unique(rows, "task"), None):
        for aim, policy in settings:
            of_task = rows if task is None else select(rows, task=task)
            own, equal = (select(of_task, aim=aim, policy=policy, equal=what) for what in (None, "bytes"))
            line = [task or "mean of tasks", policy, str(len(own)), f"{mean(own, 'kept_fraction'):.3f}", size_of(own)]
            if task is None:
                line += ["", over_tasks(own, "score"), over_tasks(own, "likelihood")]
                line += [over_tasks(equal, "likelihood") if equal else ""] * by_bytes
            else:
                line += [interval([row["score"] for row in own], ".3f")]
                line += [of_full(own, name)[1] for name in ("score", "likelihood")]
                line += [of_full(equal, "likelihood")[1] if equal else ""] * by_bytes
            lines.append(tuple(line))
    headings = ["task", "policy", "documents", "tokens kept", "bytes", "score", "of full", "likelihood of full"]
    return markdown_table([*headings, *["likelihood of full, equal bytes"] * by_bytes], lines)


def budgets_table(found: Row) -> str:
    """How far what was kept is from what was aimed at, over all texts."""
    lines = []
    for model in unique(found["rows"], "model"):
        for aim in unique(found["rows"], "aim"):
            own = select(found["rows"], model=model, aim=aim)
            kept, tokens = ([row[name] for row in own] for name in ("kept_fraction", "tokens"))
            worst = max(own, key=miss)
            lines.append(
                (
                    model,
                    f"{aim:g}",
                    str(len(own)),
                    f"{min(tokens):,} to {max(tokens):,}",
                    interval(kept, ".3f"),
                    f"{min(kept):.3f} to {max(kept):.3f}",
                    str(sum(miss(row) > WITHIN for row in own)),
                    f"{worst['text']}, {worst['tokens']:,} tokens",
                )
            )
    headings = ("model", "aim", "n", "tokens", "kept", "range", f"further than {WITHIN:g}", "furthest")
    return markdown_table(headings, lines)


def miss(row: Row) -> float:
    return abs(row["kept_fraction"] - row["aim"])


def score(row: Row) -> float:
    return row["right_tokens"] if row["task"] in TOKEN_BY_TOKEN else float(row["correct"])


def size_of(chosen: list[Row]) -> str:
    """Bytes held over a full cache's, by sample, then the mean."""
    return f"{statistics.mean(row['held_bytes'] / row['full_bytes'] for row in chosen):.2f}"


def speed_table(found: Row) -> str:
    """Ratios to the full cache of the same repetition."""
    rows = [row for row in found["rows"] if "launches" not in row]
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


def bits_table(found: Row) -> str:
    """By number of bits: bytes, and what they cost beside 16, of each passage and key."""
    lines = []
    rows = found["rows"]
    for bits in unique(rows, "bits"):
        losses, keys = (select(rows, task=task, bits=bits) for task in ("loss", "pass key"))
        exact = select(rows, task="loss", bits=16)
        rises = [one["log_probability"] - own["log_probability"] for one, own in zip(exact, losses, strict=True)]
        sizes = [mean(losses, name) / mean(losses, "full_bytes") for name in ("held_bytes", "kv_bytes")]
        right = f"{sum(row['correct'] for row in keys)} of {len(keys)}" if keys else ""
        cells = [f"{mean(losses, 'kept_fraction'):.3f}", *(f"{size:.3f}" for size in sizes)]
        cells += ["" if bits == 16 else interval(rises, "+.4f"), right]
        lines.append((str(bits), *cells, interval([row["log_probability"] for row in keys], ".2f") if keys else ""))
    count = len(select(rows, task="loss", bits=16))
    headings = ("bits", "tokens kept", "bytes", "of these K and V", f"rise in loss over 16 bits ({count})")
    return markdown_table((*headings, "keys right", "log-probability of a key"), lines)


def documents_table(found: Row) -> str:
    """What a text costs that is read once and asked often, by what is held of it and where."""
    (full,), (own,) = (select(found["rows"], way=way) for way in ("full", "namm"))
    count, name = own["questions"], "namm" if own["bits"] == 16 else f"namm, {own['bits']} bits"
    moving = own["save_seconds"] + own["load_seconds"]
    lines = [
        (cache, f"{row['read_seconds']:.0f}", f"{row['held_bytes'] / 2**20:.0f}")
        + (f"{row['file_bytes'] / 2**20:.0f}" if saved else "", f"{asking / count:.1f}", f"{before + asking:.0f}")
        + (f"{row['right']} of {count}", f"{own['same']} of {count}" if saved else "")
        for cache, row, asking, before, saved in (
            ("full, read for every question", full, full["ask_seconds"], count * full["read_seconds"], False),
            ("full, in memory", full, full["ask_seconds"], full["read_seconds"], False),
            (f"{name}, in memory", own, own["ask_seconds"], own["read_seconds"], False),
            (f"{name}, saved and loaded", own, own["saved_ask_seconds"], own["read_seconds"] + moving, True),
        )
    ]
    headings = (
        "cache",
        "read in s",
        "MiB held",
        "MiB on disk",
        "s a question",
        "all in s",
        "right",
        "answers unchanged",
    )
    return markdown_table(headings, lines)


def session_table(found: Row) -> str:
    """By part of a session: what a token took, and what was held."""
    lines = [
        (f"{row['tokens']:,}", f"{row['kept']:,.0f}", f"{1000 * row['seconds'] / row['read']:.2f}")
        + tuple(f"{row[name] / 2**20:.1f}" for name in ("held_bytes", "most_bytes", "full_bytes"))
        for row in found["rows"]
    ]
    held = "MiB held", "at most", "of a full cache"
    return markdown_table(("tokens read", "tokens held", "ms a token", *held), lines)
