"""Tables of what `benchmarks/gpu.py` measured, and of launches that `benchmarks/speed.py` counted."""

from __future__ import annotations

import statistics
from typing import Any

from tables import mean, middle, select, unique

from namm.support.plotting import markdown_table

Row = dict[str, Any]
LAUNCHES = ("block", "block_model", "step", "step_model")
UNFIT, LEFT = "does not fit", "not measured"


def agreement_table(found: Row) -> str:
    """Beside loops in float32: the largest difference of outputs, and how many tokens only one of the two holds."""
    lines = []
    for row in _whole(found, "agreement"):
        form = [name for name, there in (("softcap", row["softcap"]), ("sinks", row["sinks"])) if there]
        form += [f"{row['bits']} bits"] if "bits" in row else []
        about = ", ".join([row["policy"], row["shape"], f"{row['rows']} rows", *form])
        flips = [row[f"{kind}_flips"] for kind in ("ragged_float32", "ragged_bfloat16", "loops_bfloat16")]
        errors = [row[f"{kind}_error"] for kind in ("ragged_float32", "ragged_bfloat16", "loops_bfloat16")]
        cells = [f"{error:.1e}, {count}" for error, count in zip(errors, flips, strict=True)]
        lines.append((about, f"{row['tokens_held']:,}", *cells))
    headings = ("policy and shape", "tokens held", "ragged, float32", "ragged, bfloat16", "loops, bfloat16")
    return markdown_table(headings, lines)


def model_table(found: Row) -> str:
    """Ratios are to the full cache of the same repetition."""
    rows = select(found["rows"], measured="model")
    lines = []
    for model in unique(rows, "model"):
        of_model = select(rows, model=model)
        for tokens, batch in dict.fromkeys((row["tokens"], row["rows"]) for row in of_model):
            own = [row for row in of_model if (row["tokens"], row["rows"]) == (tokens, batch)]
            full = {row["repeat"]: row for row in select(own, cache="full") if row.get("fits")}
            for cache in unique(own, "cache"):
                cells = _model_cells(select(own, cache=cache), full, cache)
                lines.append((model.removeprefix("random:"), f"{tokens:,}", str(batch), cache, *cells))
    headings = ("model", "tokens", "batch", "cache", "n", "prefill s", "of full", "decode ms a token", "of full")
    return markdown_table((*headings, "update ms", "tokens kept", "held GiB", "peak GiB"), lines)


def _model_cells(rows: list[Row], full: dict[int, Row], cache: str) -> tuple[str, ...]:
    done = [row for row in rows if row.get("fits")]
    if not done:
        return (str(len(rows)), LEFT if any("left" in row for row in rows) else UNFIT, *[""] * 7)

    def median(name: str, factor: float, form: str) -> str:
        values = [factor * row[name] for row in done if name in row]
        return f"{statistics.median(values):{form}}" if values else ""

    def of_full(name: str) -> str:
        pairs = [(row[name], full[row["repeat"]][name]) for row in done if name in row and row["repeat"] in full]
        return middle([own / other for own, other in pairs]) if pairs and cache != "full" else ""

    return (
        str(len(done)),
        median("prefill_seconds", 1, ".2f"),
        of_full("prefill_seconds"),
        median("decode_seconds", 1000, ".2f"),
        of_full("decode_seconds"),
        median("update_seconds", 1000, ".1f"),
        f"{mean(done, 'kept_fraction'):.3f}",
        median("held_bytes", 2**-30, ".2f"),
        median("peak_bytes", 2**-30, ".1f"),
    )


def graphs_table(found: Row) -> str:
    """How many tokens are the same whether steps of decoding are CUDA graphs or not."""
    lines = [(row["model"].removeprefix("random:"), f"{row['same']} of {row['new_tokens']}")
             for row in _whole(found, "graphs") if row["fits"]]  # fmt: skip
    return markdown_table(("model", "tokens that are the same by graphs"), lines)


def kernel_table(found: Row) -> str:
    """Attention in decoding beside a copy in memory; spectrograms, and all that a memory observes, beside attention."""
    copies = _whole(found, "copy")
    if not copies:
        return ""
    best = copies[0]["bytes_per_second"]
    lines = []
    blocks = select(found["rows"], measured="block")
    for row in select(found["rows"], measured="decoding"):
        about = {name: row[name] for name in ("shape", "tokens", "rows")}
        block = next(one for one in blocks if all(one[name] == own for name, own in about.items()))
        cells = [row["shape"], f"{row['tokens']:,}", str(row["rows"])]
        if row.get("fits"):
            speed = row["bytes_per_second"]
            cells += [f"{1e6 * row['seconds']:.0f}", f"{speed / 1e9:,.0f}", f"{speed / best:.2f}"]
        else:
            cells += [LEFT if "left" in row else UNFIT, "", ""]
        if block.get("fits"):
            attention = block["attention_seconds"]
            cells.append(f"{1e6 * attention:.0f}")
            cells += [f"{block[f'{name}_seconds'] / attention:.2f}" for name in ("spectrogram", "observed")]
        else:
            cells += [LEFT if "left" in block else UNFIT, "", ""]
        lines.append(tuple(cells))
    headings = ("layer of", "tokens a head", "batch", "decoding us", "GB/s", f"of a copy's {best / 1e9:,.0f}")
    return markdown_table((*headings, "a block us", "spectrogram of it", "all observed of it"), lines)


def _whole(found: Row, measured: str) -> list[Row]:
    return [row for row in select(found["rows"], measured=measured) if "left" not in row]


def gpu_tables(found: Row) -> list[str]:
    """All of them."""
    return [table(found) for table in (agreement_table, kernel_table, model_table, graphs_table)]


def launches_table(found: Row) -> str:
    """What a block and a step of decoding launch a layer; empty where it was not counted."""
    lines = []
    for row in found["rows"]:
        if "launches" in row:
            cells = [f"{row[name]:.0f}" if row[name] is not None else "" for name in LAUNCHES]
            lines.append((row["launches"], str(row["rows"]), *cells))
    headings = ("engine", "batch", "a block", "with the model", "a step of decoding", "with the model")
    return markdown_table(headings, lines) if lines else ""
