from __future__ import annotations

import pytest

from namm import NAMM, NAMMConfig
from namm.evaluation import compare
from namm.policies import BUDGETED


@pytest.mark.parametrize("context", [256, 240])
def test_all_policies_are_compared_at_what_the_memory_kept(tiny, ids, context: int) -> None:
    """Also where the context ends within an update interval."""
    memory = NAMM(NAMMConfig(update_interval=64))
    rows = list(compare(tiny, ids[:, : context + 32], memory, tail=32, instruction=ids[0, :3]))
    assert [row.policy for row in rows] == ["full", "namm", *BUDGETED]
    own = rows[1].tail.kept_fraction
    assert 0 < own < 1
    assert rows[0].rise == 0.0 and rows[1].rise == pytest.approx(rows[1].tail.loss - rows[0].tail.loss) != 0
    for row in rows[2:]:
        assert row.tail.kept_fraction == pytest.approx(own, abs=1 / context)
        assert row.rise == pytest.approx(row.tail.loss - rows[0].tail.loss)
        assert row.tail.held_bytes < rows[0].tail.held_bytes


def test_the_memory_aims_at_what_is_asked(tiny, ids) -> None:
    memory = NAMM(NAMMConfig(update_interval=64, kept=0.5))
    said: list[str] = []
    low, high = (list(compare(tiny, ids, memory, kept=kept, tail=32, progress=said.append)) for kept in (0.1, 0.9))
    assert low[1].tail.kept_fraction < high[1].tail.kept_fraction
    assert said == ["full", "namm", *(name for name in BUDGETED if name != "kvzip")] * 2
    with pytest.raises(ValueError, match="needs an instruction"):
        list(compare(tiny, ids, memory, rehearse=True))
