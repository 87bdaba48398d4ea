from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from namm import NAMM, NAMMConfig
from namm.evaluation import answer_score, compare, tail_loss
from namm.policies import BUDGETED, H2O, Full


def test_the_full_cache_loses_what_the_plain_model_loses(tiny, ids) -> None:
    with torch.no_grad():
        logits = tiny(ids).logits[0]
    for tail in (1, 50):
        expected = F.cross_entropy(logits[-tail - 1 : -1], ids[0, -tail:])
        assert tail_loss(tiny, ids, Full(), tail).loss == pytest.approx(float(expected), abs=1e-4)


def test_an_answer_is_scored_token_by_token(tiny, ids) -> None:
    context, question, answer = ids[:, :200], ids[:, 200:204], ids[:, 204:207]
    with torch.no_grad():
        logits = tiny(ids[:, :207]).logits[0, 203:206].log_softmax(-1)
    expected = float(logits.gather(1, answer[0][:, None]).mean())
    found = answer_score(tiny, context, question, answer, Full())
    assert found.log_probability == pytest.approx(expected, abs=1e-4)
    assert not found.correct and found.kept_fraction == 1.0
    best = []
    for _ in range(2):
        with torch.no_grad():
            best.append(
                int(tiny(torch.cat([ids[:, :204], torch.tensor([best], dtype=torch.long)], 1)).logits[0, -1].argmax())
            )
    assert answer_score(tiny, context, question, torch.tensor([best]), Full()).correct


@pytest.mark.parametrize("context", [256, 240])
def test_all_policies_are_compared_at_what_the_memory_kept(tiny, ids, context: int) -> None:
    """Also where the context ends within an update interval."""
    memory = NAMM(NAMMConfig(update_interval=64))
    rows = list(compare(tiny, ids[:, : context + 32], memory, tail=32))
    assert [row.policy for row in rows] == ["full", "namm", *BUDGETED]
    own = rows[1].tail.kept_fraction
    assert 0 < own < 1
    for row in rows[2:]:
        assert row.tail.kept_fraction == pytest.approx(own, abs=1 / context)
        assert row.rise == pytest.approx(row.tail.loss - rows[0].tail.loss)
        assert row.tail.held_bytes < rows[0].tail.held_bytes


@pytest.mark.parametrize("tail", [0, 300, 400])
def test_a_tail_that_does_not_fit_is_refused(tiny, ids, tail: int) -> None:
    with pytest.raises(ValueError, match="300 tokens"):
        tail_loss(tiny, ids, H2O(), tail)
