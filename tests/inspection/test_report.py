from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from inspected import TEXT

from namm.inspection import class_shares, report_page, save_report, token_classes
from namm.tasks import Document


def data_of(page: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def unpacked(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=kind)


def test_the_page_carries_everything(remembered, by_rule) -> None:
    classes = token_classes(Document("a.txt", TEXT, "prose"), remembered.spans)
    shares = class_shares([(remembered, classes)], "prose")
    page = report_page([remembered, by_rule], title="<i>a</i>", classes=classes, shares=shares)
    assert not re.search(r"(src|href)\s*=|url\(|@import|fetch\(", page), "it needs nothing from elsewhere"
    data = data_of(page)
    assert data["title"] == "<i>a</i>" and "".join(data["tokens"]) == TEXT
    assert [data["classes"][index] for index in data["classOf"]] == classes
    assert [share["name"] for share in data["shares"]] == [share.name for share in shares]
    for pane, found in zip(data["panes"], (remembered, by_rule), strict=True):
        assert (unpacked(pane["forgotten"], "<u2") == found.forgotten.flatten()).all()
    scores = data["panes"][0]["scores"]
    rounded = unpacked(scores["data"], "i1").reshape(remembered.scores.shape)
    never = np.isnan(remembered.scores)
    assert (rounded[never] == -128).all() and (rounded[~never] > -128).all()
    assert np.abs(rounded * scores["scale"] - remembered.scores)[~never].max() <= scores["scale"]
    assert data["panes"][1]["scores"] is None


def test_shares_without_an_interval_are_written(remembered) -> None:
    classes = ["number"] * remembered.tokens
    shares = [replace(class_shares([(remembered, classes)], "prose")[0], interval=float("nan"))]
    assert data_of(report_page([remembered], classes=classes, shares=shares))["shares"][0]["interval"] is None


def test_only_the_same_text_is_shown_side_by_side(remembered, by_rule) -> None:
    with pytest.raises(ValueError, match="at least one"):
        report_page([])
    with pytest.raises(ValueError, match="h2o and namm were not inspected on the same text"):
        report_page([remembered, replace(by_rule, text=TEXT + "x")])


def test_save_report(remembered, tmp_path) -> None:
    save_report([remembered], tmp_path / "page.html", title="a")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == report_page([remembered], title="a")
