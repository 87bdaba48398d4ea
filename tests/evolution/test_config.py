import re
import sys
from dataclasses import replace

import pytest

from namm.evolution import EvolveConfig, Stage, presets, read_config, read_sources
from namm.evolution.samples import draw_for_all
from namm.tasks import GENERATORS, Document

STAGES = '[[stages]]\ntasks = ["pass_key"]\n'


@pytest.mark.parametrize("name", ["cpu", "cpu-demo", "gpu", "universal"])
def test_presets_are_sound(name):
    assert name in presets()
    assert read_config(name).stages


@pytest.mark.parametrize(
    "text, message",
    [
        ("populaton = 8\n" + STAGES, "no key 'populaton'; did you mean 'population'"),
        ("[[stages]]\ntask = ['pass_key']", "no key 'task'; did you mean 'tasks'"),
        ("population = 1\n" + STAGES, "at least 2"),
        ("population = 'many'\n" + STAGES, "must be of type int"),
        ("seed = true\n" + STAGES, "must be of type int"),
        ("[[stages]]\ntasks = 'pass_key'", "must be a list"),
        ("[[stages]]\ntasks = [1]", "tasks = [1] in [[stages]] must be a list (tuple[str, ...])"),
        ("[[stages]]\ntasks = ['pass_key']\ntokens = ['a']", "tokens = ['a'] in [[stages]] must be a list"),
        ("text = [1]\n" + STAGES, "text = [1] in the configuration must be a list"),
        ("stages = 1", "each under [[stages]]"),
        ("stages = [1]", "each under [[stages]]"),
        ("seed = " + "[" * 100_000, "recursion"),
        ("[[stages]]\ntasks = ['passkey']", "did you mean 'pass_key'"),
        ("[[stages]]\ntasks = []", "needs tasks"),
        ("strategy = 'adam'\n" + STAGES, "choose cma"),
        ("metric = 'rouge'\n" + STAGES, "choose nats, likelihood"),
        ("model = 'smollm2-135m'\n" + STAGES, "no key 'model'; did you mean 'models'"),
        ("models = 'smollm2-135m'\n" + STAGES, "must be a list"),
        ("models = []\n" + STAGES, "name at least one"),
        ("models = ['a', 'b', 'a']\n" + STAGES, "each once"),
        ("towards = 'other'\n" + STAGES, "towards = 'other' is for parameters = 'directions' or 'way' only"),
        ("parameters = 'way'\n" + STAGES, "parameters = 'way' needs towards, the memory to which it leads"),
        ("rounds = 0\n" + STAGES, "rounds = 0: there must be at least 1"),
        ("rounds = 5\n" + STAGES, "a sample of every task for each"),
        ("tolerance = -0.1\n" + STAGES, "price and tolerance not negative"),
        ("sigma = 0.0\n" + STAGES, "sigma must be positive"),
        ("", "at least one"),
        ("seed = ", "Invalid value"),
    ],
)
@pytest.mark.fault("C18", siblings="tokens, text and stages of another kind; nesting without end")
def test_a_mistake_is_named(tmp_path, text, message):
    file = tmp_path / "evolution.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


def test_a_configuration_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="cpu-demo"):
        read_config("cpu-dmeo")


def test_an_own_file_is_read(tmp_path):
    file = tmp_path / "evolution.toml"
    file.write_text('seed = 3\ntext = ["a", "b"]\n[[stages]]\ntasks = ["pass_key"]\ntokens = [64, 128]\n')
    assert read_config(file) == EvolveConfig((Stage(("pass_key",), (64, 128)),), seed=3, text=("a", "b"))


@pytest.mark.fault("A10")
def test_a_byte_order_mark_is_passed_over(tmp_path):
    file = tmp_path / "evolution.toml"
    file.write_text(STAGES, encoding="utf-8-sig")
    assert read_config(file) == EvolveConfig((Stage(("pass_key",)),))


def numbered(count):
    """Documents whose every sentence carries their number."""
    form = "Sentence {j} of text {i} says that it is number {i}. "
    return [Document(str(i), "".join(form.format(i=i, j=j) for j in range(40)), "prose") for i in range(count)]


def source(characters, tmp_path, tasks, count=30):
    for document in numbered(count):
        (tmp_path / f"{document.name}.txt").write_text(document.text)
        (tmp_path / f"{document.name}.py").write_text("\n".join(f"x{document.name} = {j}" for j in range(99)))
    settings = EvolveConfig((Stage(tuple(tasks), (500,)),), text=(str(tmp_path),))
    return settings.stages[0], read_sources(settings, {"smollm2-135m": characters})["smollm2-135m"]


def test_splits_never_share_a_document(characters, tmp_path):
    stage, samples = source(characters, tmp_path, GENERATORS)
    seen = {
        split: {
            number
            for label in range(4)
            for _, sample in samples.draw(stage, split, 2, str(label))
            for number in re.findall(r"is number (\d+)", sample.context)
        }
        for split in ("train", "validation", "test")
    }
    assert all(seen.values())
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"] or seen["validation"] & seen["test"])


@pytest.mark.fault("C17")
def test_a_metric_without_its_package_is_refused_before_any_work(characters, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ImportError, match=r"rouge: pip install 'namm\[eval\]'"):
        read_sources(EvolveConfig((Stage(("pass_key",)),), metric="rouge_l"), {"smollm2-135m": characters})


def test_samples_depend_on_their_label_only(characters, tmp_path):
    stage, samples = source(characters, tmp_path, ["pass_key", "multi_key"])
    assert samples.draw(stage, "train", 2, "a") == samples.draw(stage, "train", 2, "a")
    assert samples.draw(stage, "train", 2, "a") != samples.draw(stage, "train", 2, "b")


def test_an_empty_split_is_refused_before_any_work(characters, tmp_path):
    with pytest.raises(ValueError, match="split 'validation'|split 'test'|split 'train'"):
        source(characters, tmp_path, ["continuation"], count=1)


def test_every_model_gets_samples_from_its_own_source(characters, tmp_path):
    stage, samples = source(characters, tmp_path, ["pass_key", "multi_key"])
    both = {"a": samples, "b": replace(samples, seed=1)}
    drawn = draw_for_all(both, stage, "train", 2, "x")
    assert len({one.key for one in drawn}) == len(drawn) == 2 * 2 * 2
    assert [(one.model, one.task, one.number) for one in drawn[:5]] == [
        ("a", "pass_key", 0), ("a", "pass_key", 1), ("a", "multi_key", 0), ("a", "multi_key", 1), ("b", "pass_key", 0),
    ]  # fmt: skip
    for name, own in (("a", drawn[:4]), ("b", drawn[4:])):
        assert [(one.task, one.sample) for one in own] == both[name].draw(stage, "train", 2, "x")
