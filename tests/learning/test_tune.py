"""Learning under forgetting: what is scored, whose gradients, and runs that end alike however they went."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refined import middling
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from namm import MemoryCache, load_model
from namm.cache import UnsupportedModelError
from namm.learning import Text, TuneConfig, asked_texts, plain_text, tune
from namm.learning.passages import Passage
from namm.learning.tuning.adapters import adapted
from namm.learning.tuning.descent import Descent
from namm.learning.tuning.loss import text_loss
from namm.learning.tuning.texts import NOT_COUNTED, TOGETHER
from namm.models import ModelNotFoundError
from namm.policies import H2O, Full, NAMMPolicy
from namm.tasks import Sample

peft = pytest.importorskip("peft")
QUICK = TuneConfig(steps=4, rank=2, alpha=4.0, piece=48, learning_rate=1e-2, save_every=1, kept=0.3)


def ids_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(97, 122, (count,), generator=torch.Generator().manual_seed(seed))


def texts_of(count: int = 3) -> list[Text]:
    return [Text(ids_of(110, seed), ids_of(20, seed + 50), 8) for seed in range(count)]


@pytest.fixture
def model(reader_folder: Path) -> PreTrainedModel:
    return load_model(reader_folder, dtype="float32", device="cpu")[0]


def test_pieces_of_a_text() -> None:
    text = Text(torch.arange(10), torch.arange(10, 17), 4)
    found = [(list(map(int, ids)), list(map(int, wanted)), ends) for ids, wanted, ends in text.pieces(4)]
    assert found == [
        ([0, 1, 2, 3], [], False),
        ([4, 5, 6, 7], [], False),
        ([8, 9], [], True),
        ([10, 11, 12, 13], [13, 14], False),
        ([14, 15], [15, 16], False),
    ]
    whole = plain_text(Passage("p", torch.arange(6)[None]))
    assert [(len(ids), list(map(int, wanted))) for ids, wanted, _ in whole.pieces(4)] == [(4, [1, 2, 3, 4]), (1, [5])]
    answer_first = Text(torch.arange(4), torch.arange(4, 6), 2)  # what the context itself predicts
    assert [list(map(int, wanted)) for _, wanted, _ in answer_first.pieces(9)] == [[4], [5]]
    with pytest.raises(ValueError, match="5 tokens to be predicted"):
        Text(torch.arange(3), torch.arange(2), 5)


def test_questions_become_texts(characters) -> None:
    (text,) = asked_texts([Sample("c" * 50, "q: ", "yes")], characters, most=11)
    assert len(text.context) == 11 and text.rest.tolist() == [*b"q: yes", 0] and text.scored == 4
    assert text.wanted.tolist() == [*b"yes", 0]
    with pytest.raises(ValueError, match="no questions"):
        asked_texts([], characters)


def test_questions_about_one_context_become_one_text(characters) -> None:
    about = [Sample("c" * 9, f"\n{number}: ", answer) for number, answer in enumerate(("yes", "no", "perhaps"))]
    text, other = asked_texts([*about, Sample("d" * 9, "q: ", "yes")], characters)
    assert text.rest.tolist() == [*b"\n0: yes\n1: no\n2: perhaps", 0]
    nothing = [NOT_COUNTED] * len("1: ")
    assert text.wanted.tolist() == [*b"yes", 0, *nothing, *b"no", 0, *nothing, *b"perhaps", 0], "each answer ends"
    assert text.scored == len(text.wanted) and text.counted == 4 + 3 + 8
    assert other.context.tolist() == [*b"d" * 9] and other.targets is None and other.counted == 4
    for targets in (torch.ones(3, dtype=torch.int64), torch.full((2,), NOT_COUNTED)):
        with pytest.raises(ValueError, match="what 2 inputs predict"):
            Text(torch.arange(4), torch.arange(3), 2, targets)


@pytest.mark.parametrize("count, groups", [(TOGETHER // 7, 1), (TOGETHER // 7 + 1, 2), (2 * (TOGETHER // 7) + 1, 3)])
def test_questions_fill_no_block_that_is_decided_on(characters, count: int, groups: int) -> None:
    texts = asked_texts([Sample("c" * 9, "\n1: ", "yes")] * count, characters)
    assert len(texts) == groups and max(len(text.rest) for text in texts) <= TOGETHER + 1
    assert sum(text.counted for text in texts) == 4 * count


def test_what_has_no_context_or_no_question_is_learned_alone(characters) -> None:
    alone = [Sample("", "q: ", "yes"), Sample("", "q: ", "no"), Sample("c", "", "yes"), Sample("c", "", "no")]
    assert [text.targets for text in asked_texts(alone, characters)] == [None] * 4
    assert len(asked_texts([Sample("c", "q", "a" * TOGETHER)] * 2, characters)) == 2


@pytest.mark.parametrize("way", ["full", "pieces", "masked", "distill", "distill masked"])
def test_what_does_not_count_is_not_learned(model: PreTrainedModel, way: str) -> None:
    """The loss over some tokens is the mean of what each of them alone loses."""
    context, rest = ids_of(90), ids_of(20, 1)
    counts = torch.tensor([True, False, False, True, True, False])
    policy = None if way == "full" else NAMMPolicy(middling(), kept=0.3)
    masked = "loops" if "masked" in way else None
    with adapted(model, replace(QUICK, masked=masked)) as adapters:
        for own in adapters.parameters.values():
            torch.nn.init.normal_(own, std=0.3)
        as_it_was = adapters.disabled if "distill" in way else None

        def loss(which: Tensor) -> float:
            text = Text(context, rest, 6, rest[-6:].where(which, NOT_COUNTED))
            return text_loss(model, text, policy, 48, as_it_was, masked).item()

        alone = [loss(torch.arange(6) == place) for place in counts.nonzero()[:, 0]]
        assert loss(counts) == pytest.approx(sum(alone) / len(alone), rel=1e-5)
        assert len({round(value, 6) for value in alone}) == len(alone)


def test_with_everything_kept_the_loss_is_the_plain_one(model: PreTrainedModel) -> None:
    text = Text(ids_of(100), ids_of(30, 1), 12)
    whole = torch.cat([text.context, text.rest])
    logits = model(whole[None, :-1], use_cache=False).logits[0, -12:]
    expected = torch.nn.functional.cross_entropy(logits, whole[-12:])
    for policy in (None, Full(), H2O(budget=1.0, update_interval=16)):
        assert text_loss(model, text, policy, 32).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_question_is_asked_of_what_is_left_of_its_context(model: PreTrainedModel) -> None:
    """The loss is that of reading in pieces, deciding at the context's end, and answering then."""
    text, policy = texts_of(1)[0], NAMMPolicy(middling(), kept=0.2)
    with torch.no_grad():
        cache = MemoryCache(model, policy)
        for piece in text.context.split(48):
            model(piece[None], past_key_values=cache)
        cache.settle()
        assert cache.stats().kept_fraction == pytest.approx(0.2, abs=0.02)
        logits = model(text.rest[None, :-1], past_key_values=cache).logits[0, -8:]
        expected = torch.nn.functional.cross_entropy(logits, text.rest[-8:])
    assert text_loss(model, text, policy, 48).item() == pytest.approx(expected.item(), abs=1e-5)


def test_distilling_is_nothing_to_learn_where_nothing_is_forgotten(model: PreTrainedModel) -> None:
    text = plain_text(Passage("p", ids_of(90)[None]))
    with adapted(model, QUICK) as adapters:
        assert text_loss(model, text, Full(), 32, adapters.disabled).item() == pytest.approx(0, abs=1e-6)
        loss = text_loss(model, text, H2O(budget=0.2, update_interval=16), 32, adapters.disabled)
        assert loss.item() > 1e-4
        loss.backward()
        assert sum(own.grad.abs().sum() for own in adapters.parameters.values() if own.grad is not None) > 0
        assert model.training
    with torch.no_grad():
        full = model(text.inputs[None], past_key_values=DynamicCache()).logits[0].log_softmax(-1)
        cache, parts = MemoryCache(model, H2O(budget=0.2, update_interval=16)), []
        for piece in text.inputs.split(32):
            parts.append(model(piece[None], past_key_values=cache).logits[0].log_softmax(-1))
    expected = (full.exp() * (full - torch.cat(parts))).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"kept": None}, {"checkpoint_layers": True}, {"objective": "distill", "dropout": 0.2, "batch": 2}]
)
def test_a_model_learns_and_is_left_as_it_was(model: PreTrainedModel, tmp_path: Path, options: dict) -> None:
    texts, before = texts_of(1), copy.deepcopy(model.state_dict())
    names = [type(module).__name__ for module in model.modules()]
    losses = tune(model, middling(), texts, tmp_path / "out", settings=replace(QUICK, steps=8, **options))
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert [type(module).__name__ for module in model.modules()] == names and not model.training
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    assert all(own.requires_grad for own in model.parameters()) and not model.is_activation_checkpointing


def test_adapters_are_loaded_in_one_line(model: PreTrainedModel, reader_folder: Path, tmp_path: Path) -> None:
    """As peft loads them, with the base model's tokenizer; the memory's fingerprint lies beside."""
    memory, out = middling(), tmp_path / "out"
    tune(model, memory, texts_of(), out, settings=QUICK)
    found, tokenizer = load_model(out, dtype="float32")
    ids = ids_of(40)[None]
    with torch.no_grad():
        mine, plain = found(ids).logits, model(ids).logits
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), out)(ids).logits
        assert torch.equal(mine, theirs) and (mine - plain).abs().max() > 1e-3
        cache = MemoryCache(found, NAMMPolicy(memory, kept=0.3))
        found.generate(ids, past_key_values=cache, max_new_tokens=2, do_sample=False)
    assert tokenizer("a")["input_ids"] and not found.training and found.name_or_path == str(out)
    assert json.loads((out / "memory.json").read_text()) == {"fingerprint": memory.fingerprint(), "kept": 0.3}
    described = json.loads((out / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(reader_folder.resolve())
    with pytest.raises(ValueError, match="adapters already"):
        tune(found, memory, texts_of(), tmp_path / "more", settings=QUICK)


def test_folders_that_are_no_adapter_say_so(model: PreTrainedModel, tmp_path: Path) -> None:
    for described, error, reason in (
        ({}, ValueError, "names no base model"),
        ({"base_model_name_or_path": str(tmp_path / "one")}, ValueError, "names another adapter"),
        ({"base_model_name_or_path": "./nowhere"}, ModelNotFoundError, "nowhere"),
    ):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(described))
        with pytest.raises(error, match=reason):
            load_model(tmp_path / "one")
    model.name_or_path = ""
    with pytest.raises(ValueError, match="no name"):
        tune(model, middling(), texts_of(), tmp_path / "out", settings=QUICK)


@pytest.mark.parametrize(
    "wrong", [{"objective": "poetry"}, {"kept": 1.5}, {"objective": "distill", "kept": None}, {"steps": 0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be|needs a fraction|bad settings"):
        TuneConfig(**wrong)


def test_another_run_does_not_go_on_in_a_folder(model: PreTrainedModel, tmp_path: Path) -> None:
    tune(model, middling(), texts_of(), tmp_path / "out", settings=QUICK)
    for memory, texts, settings, differs in (
        (middling(0.1), texts_of(), QUICK, "memory"),
        (middling(), texts_of(2), QUICK, "texts"),
        (middling(), texts_of(), replace(QUICK, seed=1), "settings"),
    ):
        with pytest.raises(ValueError, match=f"differs in: {differs}"):
            tune(model, memory, texts, tmp_path / "out", settings=settings)


LONGER = replace(QUICK, steps=12, dropout=0.1, save_every=2)
RUN = """
import sys
from refined import middling
from test_tune import LONGER, texts_of
from namm import load_model
from namm.learning import tune
model, _ = load_model(sys.argv[1], dtype="float32", device="cpu")
tune(model, middling(), texts_of(), sys.argv[2], settings=LONGER, progress=lambda now: print(now.done, flush=True))
"""


def test_a_run_that_is_killed_ends_with_the_same_adapters(
    model: PreTrainedModel, reader_folder: Path, tmp_path: Path
) -> None:
    """kill -9 between two checkpoints, then the same again; bit by bit what an undisturbed run gives."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", RUN, str(reader_folder), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*places, *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        while run.stdout.readline() not in ("5\n", ""):
            pass
        run.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    steps: list[int] = []
    for name in ("killed", "whole"):
        told: list[int] = []
        tune(
            model,
            middling(),
            texts_of(),
            tmp_path / name,
            settings=LONGER,
            progress=lambda now, told=told: told.append(now.done),  # type: ignore[misc]
        )
        steps.append(told[0])
    assert steps[0] in range(5, 12) and steps[1] == 1, "it went on from a checkpoint"
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("killed", "whole"))
    assert expected.keys() == found.keys() and all(torch.equal(own, found[name]) for name, own in expected.items())


@pytest.mark.parametrize("engine", ["loops", "padded"])
@pytest.mark.parametrize("objective", ["answers", "distill"])
def test_one_call_under_a_mask_has_the_gradients_of_reading_in_pieces(
    model: PreTrainedModel, engine: str, objective: str
) -> None:
    text, policy = texts_of(1)[0], NAMMPolicy(middling(), kept=0.3)
    piece = policy.update_interval or 0
    found = []
    for masked in (None, engine):
        settings = replace(QUICK, objective=objective, masked=masked)
        with adapted(model, settings) as adapters:
            for own in adapters.parameters.values():  # the second matrices begin at zero
                torch.nn.init.normal_(own.data, std=0.1, generator=torch.Generator().manual_seed(own.numel()))
            as_it_was = adapters.disabled if objective == "distill" else None
            loss = text_loss(model, text, policy, piece, as_it_was, masked)
            loss.backward()
            found.append((loss.item(), torch.cat([own.grad.flatten() for own in adapters.parameters.values()])))
    (loss, expected), (own_loss, own) = found
    assert len(text.inputs) > 4 * piece and own_loss == pytest.approx(loss, rel=1e-4)
    assert (own - expected).norm() <= 1e-4 * expected.norm()
    with pytest.raises(ValueError, match="pieces must fill blocks of"):
        text_loss(model, text, policy, piece - 1, masked=engine)
    with pytest.raises(ValueError, match="attending_to_held"):
        text_loss(model, text, policy, piece, masked=engine)
    assert abs(text_loss(model, text, None, piece).item() - loss) > 1e-3, "nothing was forgotten"


@pytest.mark.parametrize("masked", [None, "loops"])
def test_attention_dropout_is_refused_in_both_ways(model: PreTrainedModel, masked: str | None) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    policy = NAMMPolicy(middling(), kept=0.3)
    with adapted(model, replace(QUICK, masked=masked)), pytest.raises(UnsupportedModelError, match="attention_dropout"):
        text_loss(model, texts_of(1)[0], policy, 48, masked=masked)


@pytest.mark.parametrize("loss, gradient, named", [(float("inf"), 1.0, "loss"), (1.0, float("nan"), "gradients")])
def test_what_is_not_finite_is_not_learned_from(tmp_path: Path, loss: float, gradient: float, named: str) -> None:
    parameter = torch.ones(3, requires_grad=True)
    descent = Descent({"own": parameter}, QUICK, tmp_path / "descent.pt")
    parameter.grad = torch.full((3,), gradient)
    with pytest.raises(ValueError, match=f"{named} became (inf|nan) at step 0"):
        descent.step(loss)
    assert parameter.tolist() == [1, 1, 1] and descent.done == 0 and not descent.checkpoint.exists()
