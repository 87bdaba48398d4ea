"""One self-contained page that shows what was remembered."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from namm.inspection.table import ClassShare
    from namm.inspection.trace import Inspection

LEVELS = 127  # to which scores are rounded: the largest is this


def save_report(
    inspections: Sequence[Inspection],
    path: str | Path,
    *,
    title: str = "",
    classes: Sequence[str] | None = None,
    shares: Sequence[ClassShare] = (),
) -> None:
    """Write `report_page` to a file."""
    Path(path).write_text(report_page(inspections, title=title, classes=classes, shares=shares), encoding="utf-8")


def report_page(
    inspections: Sequence[Inspection],
    *,
    title: str = "",
    classes: Sequence[str] | None = None,
    shares: Sequence[ClassShare] = (),
) -> str:
    """HTML that needs nothing else: the text shaded by what holds it, over time, by layer and head.

    Args:
        inspections: of the same text; they are shown side by side.
        classes: of each token, see `token_classes`.
        shares: their table.

    Raises:
        ValueError: if there is none, or they are of different texts.
    """
    if not inspections:
        raise ValueError("a report shows at least one inspection")
    first = inspections[0]
    for other in inspections[1:]:
        if other.text != first.text or other.updates != first.updates or not np.array_equal(other.spans, first.spans):
            raise ValueError(f"{other.name} and {first.name} were not inspected on the same text at the same updates")
    names = list(dict.fromkeys(classes or ()))
    data = {
        "title": title or "text",
        "tokens": [first.text[start:end] for start, end in first.spans],
        "updates": first.updates,
        "classes": names,
        "classOf": None if classes is None else [names.index(name) for name in classes],
        "shares": [_finite(asdict(share)) for share in shares],
        "panes": [_pane(inspection) for inspection in inspections],
    }
    # no tag or comment of the text may end the element it is written in
    content = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("namm.inspection").joinpath("report.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", content)


def _pane(inspection: Inspection) -> dict[str, Any]:
    stats = inspection.stats
    pane: dict[str, Any] = {
        "name": inspection.name,
        "layers": inspection.layers,
        "heads": inspection.forgotten.shape[1],
        "forgotten": _packed(inspection.forgotten.astype("<u2")),
        "keptFraction": stats.kept_fraction,
        "heldBytes": stats.held_bytes,
        "fullBytes": stats.full_bytes,
        "scores": None,
        "spectrogram": None,
    }
    if inspection.scores is not None and inspection.spectrogram is not None:
        scale = max(1e-6, float(np.nan_to_num(np.abs(inspection.scores)).max())) / LEVELS
        rounded = np.nan_to_num(np.round(inspection.scores / scale), nan=-LEVELS - 1)
        magnitudes = np.log10(np.maximum(inspection.spectrogram, 1e-6))
        low, high = float(magnitudes.min()), float(magnitudes.max())
        levels = np.round((magnitudes - low) / max(high - low, 1e-6) * 255)
        pane |= {
            "scores": {"scale": scale, "data": _packed(rounded.astype(np.int8))},
            "spectrogram": {
                "low": low,
                "high": high,
                "shape": inspection.spectrogram.shape[1:],
                "data": _packed(levels.astype(np.uint8)),
            },
        }
    return pane


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """With None for NaN, which JSON lacks."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _packed(array: np.ndarray) -> str:
    """Bytes in row-major order, zlib-compressed, as base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
