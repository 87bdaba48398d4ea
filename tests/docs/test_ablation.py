"""Variants of a memory see what they would have recorded themselves, and are told apart."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from namm.learning import record_document
from namm.memory.features import network_features

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ablation  # noqa: E402
import learning_tables  # noqa: E402


@pytest.mark.parametrize("variant", [name for name in ablation.VARIANTS if name != ablation.BLIND])
def test_a_variant_sees_what_it_would_have_recorded(variant: str, reader: PreTrainedModel) -> None:
    ids, repeat = (torch.randint(0, 200, (1, n), generator=torch.Generator().manual_seed(n)) for n in (768, 8))

    def record(config, **options):
        return record_document(reader, ids, repeat, config, heads=3, rng=random.Random(0), **options)

    config = ablation.VARIANTS[variant]
    wide, own = record(ablation.RICHEST, recorder=ablation.Widest), record(config)
    assert len(wide) == len(own) > 3
    zero, one = torch.zeros(config.observed), torch.ones(config.observed)
    for found, wanted in zip(wide, own, strict=True):
        seen = ablation.columns(found, variant)
        assert torch.equal(seen.ages, wanted.ages) and torch.equal(seen.influence, wanted.influence)
        torch.testing.assert_close(seen.observed, wanted.observed, rtol=0.02, atol=0.02)  # of half precision
        features = network_features(seen.observed.float(), seen.ages, config, zero, one)
        assert features.shape == (len(seen.ages), config.features)
    blind = ablation.columns(wide[0], ablation.BLIND).observed
    spectral = len(ablation.UNIVERSAL.ema) * ablation.UNIVERSAL.spectrogram.channels
    assert not blind[:, :spectral].any() and blind[:, spectral:].any()


def test_the_most_influential_tokens_are_judged_by_rank_over_all_heads() -> None:
    class Newest:
        def features(self, observed, ages):
            return observed

        def scores(self, features):
            return features[:, 0]

    def recording(scores: list[float], influence: list[float]) -> ablation.Recording:
        return ablation.Recording(
            torch.tensor(scores)[:, None], torch.arange(len(scores)).flip(0), torch.tensor(influence)
        )

    weak, strong = recording([0, 1, 2, 3], [0, 0, 0, 1]), recording([4, 5, -1, -2], [2, 0, 0, 5])
    quarter, eighth = ablation.judge(Newest(), [weak, strong])  # type: ignore[arg-type]
    assert quarter == {"kept": 0.25, "influence": 0.25, "top_5": 0.0, "top_1": 0.0}
    assert eighth["influence"] == 0.0
    other = recording([0, 1, 2, 3, 9], [0, 0, 0, 0, 1])  # of another update: the mean over updates
    assert ablation.judge(Newest(), [weak, strong, other])[0]["influence"] == pytest.approx((0.25 + 1) / 2)  # type: ignore[arg-type]


def test_a_benchmark_of_variants_goes_on_and_fills_its_table(
    reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "found.json", tmp_path / "out"
    command = ["ablation.py", out, "--quick", "--models", reader_folder, "--json", file, "--variants"]

    def run(*variants: str) -> dict:
        monkeypatch.setattr(sys, "argv", [*map(str, command), *variants])
        ablation.main()
        return json.loads(file.read_text(encoding="utf-8"))

    recorded = run("as shipped")
    monkeypatch.setattr(ablation, "record_document", lambda *a, **k: pytest.fail("recorded twice"))
    found = run("as shipped", ablation.BLIND, "not standardised")
    assert found["rows"][0] == recorded["rows"][0] and found["rows"][1] != found["rows"][0]
    heading, _, first, *others = learning_tables.ablation_table(found).splitlines()
    assert "influence held at 0.25" in heading and first.endswith("|  |") and len(others) == 2
    assert found["rows"][0]["state_bytes"] == 28


def test_variants_are_compared_by_passage_and_seeds_give_an_interval() -> None:
    def row(variant: str, seed: int, values: tuple[float, float]) -> dict:
        judged = [
            {"model": "m", "passage": "p", "kept": 0.25, "influence": value, "top_5": 1.0, "top_1": 1.0}
            for value in values
        ]
        return {"variant": variant, "seed": seed, "parameters": 5, "state_bytes": 28, "judged": judged}

    rows = [row("a", 0, (0.8, 0.9)), row("a", 1, (0.8, 0.9)), row("b", 0, (0.7, 0.9)), row("b", 1, (0.8, 0.9))]
    _, _, first, second = learning_tables.ablation_table({"rows": rows}).splitlines()
    assert first == "| m | a | 5 | 28 | 0.850 ± 0.000 | 1.000 | 1.000 |  |"
    # seeds 0.8 and 0.85, passages -0.05 and 0; t of one degree of freedom 12.706
    assert second == "| m | b | 5 | 28 | 0.825 ± 0.318 | 1.000 | 1.000 | -0.025 ± 0.318 |"
