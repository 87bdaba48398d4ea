from __future__ import annotations

import copy
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import namm.learning.distil.run
from namm import NAMM, MemoryCache, NAMMConfig
from namm.learning import DistillConfig, Recording, TrainConfig, centre, distill, record_document, train
from namm.learning.distil.regression import influence_loss
from namm.memory.influence import EVERY, FLOOR
from namm.policies import NAMMPolicy
from namm.support.runs import Progress
from namm.tasks import Document

CONFIG = NAMMConfig(update_interval=32, hidden=8, ema=(0.9, 0.99), compression="log", normalised=True)
SETTINGS = DistillConfig(lengths=(96, 160), documents=4, facts=60, heads=2, training=TrainConfig(steps=120, batch=2))


def documents(count: int = 5) -> list[Document]:
    letters = "abcdefgh ijkl. mnop\n"
    return [
        Document(f"text {i}", "".join(random.Random(i).choice(letters) for _ in range(600)), "prose")
        for i in range(count)
    ]


def test_recorded_targets_are_what_the_lack_of_a_token_changes(reader) -> None:
    """Against outputs computed anew without each token, from the attention that transformers itself returns."""
    ids = torch.randint(97, 122, (1, 96), generator=torch.Generator().manual_seed(0))
    repeat = torch.tensor([[1, 2, 3]])
    recordings = record_document(reader, ids, repeat, CONFIG, heads=4, rng=random.Random(0))
    assert len(recordings) == 3 * 2 * 2  # every head at every update of the document
    whole = torch.cat([ids, repeat, ids, ids[:, :29]], dim=1)
    reader.set_attn_implementation("eager")
    cache = DynamicCache(config=reader.config)
    with torch.no_grad():
        attention = reader(whole, output_attentions=True, past_key_values=cache).attentions
    expected = {}
    for layer, matrix in enumerate(attention):
        grouped = matrix[0].double().unflatten(0, (2, 2))  # [KV heads, group, queries, tokens]
        for head in range(2):
            values = cache.layers[layer].values[0, head].double()
            change = torch.zeros(*grouped.shape[1:])
            for token in range(96):
                without = grouped[head].clone()
                without[..., token] = 0
                without = without / without.sum(-1, keepdim=True).clamp_min(1e-9)
                output, other = grouped[head] @ values, without @ values
                change[..., token] = (other - output).square().sum(-1) / output.square().sum(-1)
            blocks = change.unflatten(1, (-1, 32))[:, :, ::EVERY].sum((0, 2)).sqrt()  # [blocks, tokens]
            for update in range(1, 4):
                expected[layer, head, update] = blocks[update:, : 32 * update].amax(0)
    found = sorted((len(s.ages), s.influence.float().sum().item()) for s in recordings)
    wanted = sorted((len(e), e.sum().item()) for e in expected.values())
    for (tokens, total), (tokens_wanted, total_wanted) in zip(found, wanted, strict=True):
        assert tokens == tokens_wanted and total == pytest.approx(total_wanted, rel=1e-2)


def test_nothing_is_recorded_within_the_horizon(reader) -> None:
    ids = torch.randint(97, 122, (1, 96))
    recordings = record_document(reader, ids, ids[:, :3], CONFIG, heads=4, rng=random.Random(0), horizon=40)
    assert {len(recording.ages) for recording in recordings} == {32}


def test_an_acting_memory_adds_recordings_of_what_it_keeps(reader) -> None:
    ids = torch.randint(97, 122, (1, 96))
    acting = NAMMPolicy(NAMM(CONFIG), offset=-1e9)
    recordings = record_document(reader, ids, ids[:, :3], CONFIG, heads=4, rng=random.Random(0), acting=acting)
    assert len(recordings) == 2 * 12
    assert {len(recording.ages) for recording in recordings[12:]} == {32, 33}  # a block, and the one token that stays


def test_a_length_off_the_interval_is_refused(reader) -> None:
    with pytest.raises(ValueError, match="97 tokens is no multiple"):
        record_document(
            reader, torch.zeros(1, 97, dtype=torch.long), torch.zeros(1, 1), CONFIG, heads=1, rng=random.Random()
        )


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_loss_is_least_at_the_log_of_the_expected_power(power: float) -> None:
    attention = torch.tensor([0.5, 0.0, 0.0, 0.0])
    wanted = (attention + FLOOR).pow(power).mean()
    score = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([score], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        influence_loss(score.expand(4), attention, power).mean().backward()
        optimizer.step()
    assert float(score.detach().exp()) == pytest.approx(float(wanted), rel=0.02)


def learnable(count: int) -> list[Recording]:
    """Samples in which attention follows from the spectrogram."""
    generator = torch.Generator().manual_seed(0)
    recordings = []
    for _ in range(count):
        level = torch.rand(40, generator=generator) * 6 - 7
        observed = level[:, None].expand(40, 34).half()
        recordings.append(Recording(observed, torch.arange(39, -1, -1).int(), level.exp().half()))
    return recordings


def test_training_learns_what_can_be_learned() -> None:
    memory = train([learnable(40)], CONFIG, TrainConfig(steps=400, batch=4))
    recording = learnable(1)[0]
    scores = memory.scores(memory.features(recording.observed, recording.ages))
    correlation = torch.corrcoef(torch.stack([scores, recording.influence.float().log()]))[0, 1]
    assert correlation > 0.97


def test_the_power_of_the_settings_is_learned() -> None:
    """Where features say nothing of an influence that is 1 once in four times, and nothing else."""
    flat = [replace(one, observed=one.observed * 0 - 4.6) for one in learnable(20)]
    rare = [replace(one, influence=(torch.arange(40) % 4 == n % 4).half() * 0.3) for n, one in enumerate(flat)]
    for power in (0.5, 1.0):
        memory = train([rare], CONFIG, TrainConfig(steps=300, batch=4, power=power))
        scores = memory.scores(memory.features(rare[0].observed, rare[0].ages))
        assert float(scores.mean()) == pytest.approx(math.log(0.25 * 0.3**power), abs=0.25)


def test_scores_are_centred_where_the_wished_fraction_is_kept() -> None:
    recordings = learnable(40)
    memory = train([recordings], CONFIG, TrainConfig(steps=50, batch=2))
    for kept in (0.2, 0.6):
        moved = centre(memory, recordings, kept)
        scores = torch.cat([moved.scores(moved.features(one.observed, one.ages)) for one in recordings])
        assert float((scores >= 0).float().mean()) == pytest.approx(kept, abs=0.01)
        assert torch.equal(moved.flat[:-1], memory.flat[:-1])
        assert moved.config.influence == pytest.approx((0.7, float(memory.flat[-1] - moved.flat[-1])), abs=1e-4)


def test_training_resumes_to_the_same_parameters(tmp_path: Path) -> None:
    recordings, checkpoint = learnable(10), tmp_path / "state"
    whole = train([recordings], CONFIG, TrainConfig(steps=250, batch=2))

    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 170:
            raise Stop

    with pytest.raises(Stop):
        train([recordings], CONFIG, TrainConfig(steps=250, batch=2), checkpoint=checkpoint, progress=stop)
    steps = []
    resumed = train(
        [recordings],
        CONFIG,
        TrainConfig(steps=250, batch=2),
        checkpoint=checkpoint,
        progress=lambda s, loss: steps.append(s),
    )
    assert steps[0] == 101
    assert torch.equal(whole.flat, resumed.flat)


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was recorded"):
        train([[]], CONFIG, TrainConfig())


def test_distilling_is_deterministic_and_resumable(reader, characters, tmp_path: Path, monkeypatch) -> None:
    arguments = {"memory": CONFIG, "settings": SETTINGS}
    first = distill([(reader, characters)], [documents()], tmp_path / "a", **arguments)
    assert first.config == replace(CONFIG, kept=0.25, influence=first.config.influence)
    power, shift = first.config.influence or (0.0, 0.0)
    assert power == SETTINGS.training.power and shift != 0.0
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "# A distilled memory" in card and type(reader).__name__ in card
    loaded = NAMM.from_pretrained(tmp_path / "a")
    assert loaded.config == first.config and torch.equal(loaded.flat, first.flat)

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for file in ("0-0003.pt", "final.ckpt"):
        (tmp_path / "b" / "work" / file).unlink()
    calls = []
    monkeypatch.setattr(
        namm.learning.distil.run, "record_document", lambda *a, **k: calls.append(1) or record_document(*a, **k)
    )
    resumed = distill([(reader, characters)], [documents()], tmp_path / "b", **arguments)
    assert len(calls) == 1, "finished recordings were made again"
    assert torch.equal(first.flat, resumed.flat)


def test_a_first_memory_acts_on_the_later_passages(reader, characters, tmp_path: Path, monkeypatch) -> None:
    acted, horizons = [], []

    def spy(*arguments, acting=None, horizon=0, **options):
        acted.append(acting)
        horizons.append(horizon)
        return record_document(*arguments, acting=acting, horizon=horizon, **options)

    monkeypatch.setattr(namm.learning.distil.run, "record_document", spy)
    distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=replace(SETTINGS, first=0.5))
    assert acted[:2] == [None, None] and len(acted) == 4
    assert torch.equal(acted[2].memory.flat, acted[3].memory.flat)
    assert acted[2].kept != acted[3].kept and all(0.12 <= policy.kept <= 0.5 for policy in acted[2:])
    assert horizons == [48, 80, 48, 80], "of short passages half"


@pytest.mark.fault("A11", siblings="refining: `identify` saw eight values of a parameter")
def test_work_of_another_model_or_other_settings_is_not_mixed(reader, characters, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=SETTINGS, progress=interrupt)
    other = copy.deepcopy(reader)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 0.5
    with pytest.raises(ValueError, match="work of another distillation, which differs in: models;"):
        distill([(other, characters)], [documents()], tmp_path, memory=CONFIG, settings=SETTINGS)
    fewer = replace(SETTINGS, facts=0)
    with pytest.raises(ValueError, match="work of another distillation, which differs in: settings"):
        distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=fewer)


def test_several_models_are_learned_from_alike(reader, characters, tmp_path: Path) -> None:
    """From as many passages of each; with one of them twice, the memory is that of one."""
    other = copy.deepcopy(reader)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    models = [(reader, characters), (other, characters)]
    both = distill(models, [documents()], tmp_path / "both", memory=CONFIG, settings=SETTINGS)
    files = sorted(file.name for file in (tmp_path / "both" / "work").glob("*.pt"))
    assert files == [f"{place}-000{index}.pt" for place in range(2) for index in range(4)]
    alone = distill(models[:1], [documents()], tmp_path / "alone", memory=CONFIG, settings=SETTINGS)
    assert not torch.equal(both.flat, alone.flat)


def interrupt(progress: Progress) -> None:
    raise KeyboardInterrupt


@pytest.mark.fault("B12", siblings="refining, evolving")
def test_a_memory_is_not_written_over_its_model(reader, characters, reader_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(reader_folder, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="name a new or empty folder"):
        distill([(reader, characters)], [documents()], tmp_path / "model", memory=CONFIG, settings=SETTINGS)
    assert (tmp_path / "model" / "config.json").read_bytes() == before


@pytest.mark.fault("B14", siblings="refining's readings and checkpoints, the claim, the memory itself")
@pytest.mark.parametrize("file", ["0-0003.pt", "final.ckpt"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_cut_file_of_an_earlier_run_is_named(reader, characters, tmp_path: Path, file: str, left: int) -> None:
    distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=SETTINGS)
    path = tmp_path / "work" / file
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"{file} is cut short or damaged: delete it"):
        distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=SETTINGS)


def test_texts_that_are_too_short_are_named(reader, characters, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of 1 documents give a passage of 96 tokens"):
        distill([(reader, characters)], [[Document("x", "short", "prose")]], tmp_path, memory=CONFIG, settings=SETTINGS)


def test_a_distilled_memory_serves(reader, characters, tmp_path: Path) -> None:
    memory = distill([(reader, characters)], [documents()], tmp_path, memory=CONFIG, settings=SETTINGS)
    cache = MemoryCache(reader, memory)
    with torch.no_grad():
        reader(torch.randint(97, 122, (1, 200)), past_key_values=cache)
    cache.check()


@pytest.mark.parametrize("values", [{"documents": 1}, {"lengths": ()}, {"first": 1.0}, {"kept": 0.0}])
def test_bad_settings_are_refused(values) -> None:
    with pytest.raises(ValueError, match="bad distillation settings"):
        DistillConfig(**values)
