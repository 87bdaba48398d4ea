from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

for needed in ("gymnasium", "mujoco"):
    pytest.importorskip(needed, reason=f"{needed}, of the extra `decision`, is missing")
gymnasium = importlib.import_module("gymnasium")
actor, decision = importlib.import_module("actor"), importlib.import_module("decision")

SHORT, STEPS = "ShortCheetah-v5", 25


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path: Path) -> None:
    """Episodes of HalfCheetah that end soon, in a folder where nothing may be left behind."""
    if SHORT not in gymnasium.registry:
        cheetah = "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv"
        gymnasium.register(SHORT, entry_point=cheetah, max_episode_steps=STEPS)
    monkeypatch.chdir(tmp_path)


def test_experience_is_the_same_when_its_making_was_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(actor, "SAVE_EVERY", 2)
    (tmp_path / "whole").mkdir()
    whole = actor.collect(tmp_path / "whole", SHORT, 4)
    search = actor._search

    def killed(world, found, random):
        if found["round"] == 3:
            raise KeyboardInterrupt
        return search(world, found, random)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(actor, "_search", killed)
        actor.collect(tmp_path, SHORT, 4)
    data = actor.collect(tmp_path, SHORT, 4)
    steps = 4 * 3 * STEPS
    assert data["states"].shape == (steps, 17) and data["actions"].shape == (steps, 6)
    assert np.flatnonzero(data["ends"]).tolist() == list(range(STEPS - 1, steps, STEPS))
    done, meant = (data[name].reshape(4, 3, STEPS, 6) for name in ("actions", "meant"))
    assert np.array_equal(done[:, 0], meant[:, 0]) and not np.isclose(done[:, 1:], meant[:, 1:]).all((-2, -1)).any()
    assert np.isfinite(data["rewards"]).all() and np.abs(data["actions"]).max() <= 1
    for one in (data, actor.collect(tmp_path, SHORT, 4)):
        assert all(np.array_equal(one[name], whole[name]) for name in whole)
    assert not list(tmp_path.glob("MUJOCO*"))


@pytest.mark.fault("D25", siblings="every example printed its bars to standard output")
def test_the_recipe_from_nothing_to_the_table(call, memory: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        call(decision, "evaluate", out)
    told = call(decision, "train", out, "--environment", SHORT, "--rounds", 2, "--updates", 3, "--window", 8)
    assert "6 episodes; return" in told
    known = json.loads((out / "statistics.json").read_text())
    assert len(known["mean"]) == 17 and known["environment"] == SHORT and known["window"] == 8
    table = call(decision, "evaluate", out, "--episodes", 1, "--memory", memory)
    for expected in (
        "random actions",
        "full",
        "streaming, 8 steps",
        "namm, aimed at 0.5",
        "namm, aimed at 0.25",
        "h2o",
    ):
        assert expected in table
    assert not re.search(r"\d:\d\d:\d\d", table), "no times in what is compared below"
    assert (out / "held.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(decision, "live", lambda *_: pytest.fail("measured again"))
    assert call(decision, "evaluate", out, "--episodes", 1, "--memory", memory) == table
    assert not list(tmp_path.glob("MUJOCO*"))
