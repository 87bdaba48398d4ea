from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from namm import NAMM, NAMMConfig
from namm.evolution.directions import (
    STEP,
    WEAK,
    along,
    directions,
    feature_groups,
    recorded_heads,
    spreads,
    way,
)
from namm.memory.network import unflatten
from namm.tasks import Sample

SEEN = NAMMConfig(
    update_interval=32, hidden=8, ema=(0.9, 0.99), bands=((0, 0), (1, 16)), birth=True, key_value=True, kept=0.25,
    compression="log", standardised=True,
)  # fmt: skip


@pytest.fixture
def start() -> NAMM:
    memory = NAMM(SEEN)
    noise = torch.randn(len(memory.flat), generator=torch.Generator().manual_seed(1))
    return replace(memory, flat=memory.flat + 0.1 * noise)


@pytest.fixture
def heads() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(tokens, SEEN.features, generator=generator) for tokens in (50, 80)]


def parts(flat: torch.Tensor, config: NAMMConfig = SEEN) -> dict[str, torch.Tensor]:
    return unflatten(flat, config.features, config.hidden)


def test_groups_are_age_and_what_is_observed_with_its_levels():
    assert [(group.start, group.stop) for group in feature_groups(SEEN)] == [
        (0, 8), (8, 12), (12, 20), (20, 24), (24, 28), (28, 36), (36, 40),
    ]  # fmt: skip
    assert feature_groups(NAMMConfig())[-1].stop == NAMMConfig().features


def test_directions_are_few_and_made_of_the_start(start):
    ways = directions(start)
    assert 16 <= len(ways) <= 64
    gains = ways[:14:2].sum(0)  # of the score, group by group
    torch.testing.assert_close(parts(gains)["score.weight"], parts(start.flat)["score.weight"])
    assert not parts(gains)["attention.qkv.weight"].any()
    first = next(way for way in ways[16:] if parts(way)["attention.qkv.weight"].any())
    own = parts(start.flat)["attention.qkv.weight"][:, :8]
    assert torch.linalg.matrix_rank(parts(first)["attention.qkv.weight"]) == 1
    assert torch.linalg.matrix_norm(parts(first)["attention.qkv.weight"]) == pytest.approx(
        float(torch.linalg.matrix_norm(own, 2)), rel=1e-5
    )


def test_the_threshold_moves_only_where_it_counts(start):
    with_threshold = directions(replace(start, config=replace(SEEN, kept=None)))
    assert len(with_threshold) == len(directions(start)) + 1
    assert not any(parts(way)["score.bias"].any() for way in directions(start))


def test_the_way_to_another_memory_gives_directions(start):
    other = replace(start, flat=start.flat.clone())
    parts(other.flat)["attention.output.weight"][:, 0] += 1  # of rank one, in the residual's block
    parts(other.flat)["score.weight"] += 0.5
    ways = directions(start, other)
    changed = sum(way for way in ways if parts(way)["attention.output.weight"].any())
    torch.testing.assert_close(
        parts(changed)["attention.output.weight"],
        parts(other.flat - start.flat)["attention.output.weight"],
        rtol=1e-4,
        atol=1e-5,
    )
    assert any(bool((parts(way)["score.weight"] - 0.5).abs().max() < 1e-6) for way in ways)
    with pytest.raises(ValueError, match="another configuration"):
        directions(start, NAMM(replace(SEEN, hidden=4)))


def test_the_way_leads_to_the_other_memory_part_by_part(start):
    other = replace(start, flat=start.flat + torch.randn(len(start.flat), generator=torch.manual_seed(3)))
    space = way(start, other)
    assert space.dimensions == 8
    there, none, one = space.flat(np.stack([np.ones(8), np.zeros(8), np.eye(8)[4]]))
    torch.testing.assert_close(there[:-1], other.flat[:-1])  # the last is the bias of the score
    assert torch.equal(none, start.flat) and 0 < int((one != start.flat).sum()) < len(one) / 2
    near = replace(start, flat=start.flat.clone())
    parts(near.flat)["attention.output.bias"] += 1
    assert way(start, near).dimensions == 1
    with pytest.raises(ValueError, match="no way to it"):
        way(start, start)
    with pytest.raises(ValueError, match="another configuration"):
        way(start, NAMM(replace(SEEN, hidden=4)))


def test_a_move_of_one_changes_scores_by_their_spread_in_every_direction(start, heads):
    ways = directions(start)
    sizes = spreads(start, ways, heads)
    space = along(start, ways, sizes)
    assert space.dimensions == sum(size >= WEAK for size in sizes) > 16
    torch.testing.assert_close(space.flat(np.zeros((2, space.dimensions))), start.flat.expand(2, -1))
    lengths, features = [len(own) for own in heads], torch.cat(heads)
    scale = start.scores(features, lengths).std()
    strong = [size for size in sizes if size >= WEAK]
    for number in range(0, space.dimensions, 5):
        moves = np.zeros((2, space.dimensions))
        moves[0, number], moves[1, number] = STEP * strong[number], -STEP * strong[number]
        up, down = (replace(start, flat=flat).scores(features, lengths) for flat in space.flat(moves))
        assert float((up - down).std() / scale) == pytest.approx(2 * STEP * strong[number], rel=1e-3)


def test_a_shift_of_all_scores_is_no_change_where_a_fraction_is_kept(start, heads):
    shift = torch.zeros(1, len(start.flat))
    shift[0, -1] = 1
    assert spreads(start, shift, heads) == pytest.approx([0.0], abs=1e-5)
    assert spreads(replace(start, config=replace(SEEN, kept=None)), shift, heads)[0] > 0.1


def test_what_moves_no_score_is_refused(start, heads):
    silent = replace(start, flat=torch.zeros_like(start.flat))
    with pytest.raises(ValueError, match="scores all tokens alike"):
        spreads(silent, directions(start), heads)
    with pytest.raises(ValueError, match="no direction"):
        along(start, directions(start), [0.0] * len(directions(start)))


def test_features_are_recorded_as_a_memory_sees_them(reader, characters, start):
    heads = recorded_heads(reader, characters, start, Sample("the cat sat on the mat; " * 4, "\n", "the"), 0.25)
    assert [tuple(own.shape) for own in heads] == [(96, SEEN.features)] * 4  # two layers of two heads
    assert all(bool(torch.isfinite(own).all()) for own in heads)
    assert not torch.equal(heads[0], heads[1])
