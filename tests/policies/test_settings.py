from __future__ import annotations

import pytest

from namm import NAMM, NAMMConfig
from namm.policies import H2O, L2, TOVA, NAMMPolicy, Random, SnapKV, Streaming

MEMORY = NAMM(NAMMConfig())
WRONG = [
    (H2O, {"recent_share": 2.0}, "recent"),
    (H2O, {"recent_share": -0.1}, "recent"),
    (H2O, {"recent_share": float("nan")}, "recent"),
    (Streaming, {"sinks": -1}, "sinks"),
    (Streaming, {"sinks": 1.5}, "sinks"),
    (L2, {"skip_layers": -2}, "skip_layers"),
    (Random, {"seed": -1}, "seed"),
    (SnapKV, {"window": 0}, "window"),
    (SnapKV, {"pool": 4}, "pool"),
    (SnapKV, {"pool": -1}, "pool"),
    (TOVA, {"update_interval": 0}, "update_interval"),
    (TOVA, {"update_interval": 2.5}, "update_interval"),
    (TOVA, {"budget": float("inf")}, "budget"),
    (TOVA, {"budget": float("nan")}, "budget"),
    (NAMMPolicy, {"memory": MEMORY, "cap": 0}, "cap"),
    (NAMMPolicy, {"memory": MEMORY, "cap": 1.5}, "cap"),
    (NAMMPolicy, {"memory": MEMORY, "offset": float("nan")}, "offset"),
]


@pytest.mark.fault("A20", siblings="every setting of every rule")
@pytest.mark.parametrize(("rule", "settings", "name"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_settings_that_mean_nothing_are_refused(rule, settings, name) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        rule(**settings)
