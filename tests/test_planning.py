from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from namm import NAMM, MemoryCache, ModelNotFoundError, NAMMConfig, UnsupportedModelError
from namm.planning import packaged_configs, plan, read_config
from namm.policies import Full, NAMMPolicy

SHIPPED = NAMM.from_pretrained("universal").config
GIB = 2**30


def test_llama_3_70b_by_hand() -> None:
    found = plan("meta-llama-3-70b", SHIPPED)
    # embedding and head, then 80 times: Q and O, K and V, three of the MLP, two norms; and the last norm
    layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert found.parameters == 2 * 128256 * 8192 + 80 * layer + 8192 == 70_553_706_496
    assert found.weights == 2 * 70_553_706_496
    # a token: K and V, 80 layers, 8 heads of 128 numbers of two bytes: 320 KiB; 128 Ki of them: 40 GiB
    assert found.full(1) == 2 * 80 * 8 * 128 * 2 == 320 * 1024
    assert found.full(131_072) == 40 * GIB
    assert plan("meta-llama-3-70b", SHIPPED, batch=8).full(131_072) == 320 * GIB
    # a quarter, and the block of 256 not yet decided: 33,024 tokens; each 512 bytes of K and V, two averages of
    # two bands and eight numbers of birth in bfloat16, and a position of four bytes, in 640 heads
    tokens = 131_072 // 4 + 256
    columns = 80 * 8 * tokens * (512 + (2 * 2 + 8) * 2 + 4)
    # 256 queries of 64 heads of 128 in bfloat16 with 64 free slots, and 16 carried over with a normaliser in float32
    queries = 80 * 64 * (320 * 128 * 2 + 16 * (128 * 2 + 4))
    assert found.kept(131_072, 0.25) == columns + queries
    assert round(found.kept(131_072, 0.25) / GIB, 2) == 11.04


def test_the_longest_context_is_the_last_that_fits() -> None:
    found = plan("meta-llama-3-8b", SHIPPED)
    room = 80 * GIB - found.weights
    for fraction in (None, 0.25):
        cost = found.full if fraction is None else lambda context: found.kept(context, 0.25)
        longest = found.longest(room, fraction)
        assert cost(longest) <= room < cost(longest + 1)
    assert found.longest(-1, None) == 0


def test_it_counts_what_a_cache_really_holds(tiny: PreTrainedModel, tmp_path: Path) -> None:
    tiny.config.save_pretrained(tmp_path)
    memory = NAMM(NAMMConfig(update_interval=64, state_dtype="bfloat16"))
    found = plan(str(tmp_path), memory.config, dtype=torch.float32, batch=2)
    assert found.parameters == sum(parameter.numel() for parameter in tiny.parameters())
    ids = torch.randint(3, 200, (2, 1023), generator=torch.Generator().manual_seed(1))  # one before an update
    full = MemoryCache(tiny, Full())
    tiny(ids, past_key_values=full)
    assert full.stats().full_bytes == found.full(1023)
    cache = MemoryCache(tiny, NAMMPolicy(memory, offset=100.0, cap=256))
    tiny(ids[:, :1000], past_key_values=cache)
    for token in ids[:, 1000:].split(1, dim=1):
        tiny(token, past_key_values=cache)
    stats = cache.stats()
    assert stats.kept[0][0] == (256 + 63,) * 2
    planned = found.kept(1023, 256 / 1023)
    assert stats.held_bytes <= planned <= 1.1 * stats.held_bytes


def test_sliding_layers_hold_their_window() -> None:
    found = plan("gemma3-270m", SHIPPED)
    assert found.layers == 3 and found.windows == (512,) * 15
    token = 2 * 1 * 256 * 2
    assert found.full(8192) == 3 * 8192 * token + 15 * 512 * token
    assert found.full(100) == 18 * 100 * token
    assert found.kept(8192, 0.25) - found.sliding(8192) < 0.4 * 3 * 8192 * token


@pytest.mark.parametrize("name", packaged_configs())
def test_every_packaged_configuration_can_be_planned(name: str) -> None:
    found = plan(name, SHIPPED)
    published = {"smollm2-135m": 134_515_008, "gemma3-270m": 268_098_176, "meta-llama-3-8b": 8_030_261_248}
    assert found.parameters == published.get(name, found.parameters), "an embedding that is the head too counts once"
    assert found.kept(65_536, 0.25) < found.full(65_536) and found.weights > 1e8


def test_what_is_no_configuration_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"there is no file 'nowhere\.json'"):
        plan("nowhere.json", SHIPPED)
    with pytest.raises(ModelNotFoundError, match=r"no configuration of 'no/where'.*meta-llama-3-70b"):
        plan("no/where", SHIPPED)
    broken = tmp_path / "config.json"
    for text in ("{", "[]", '{"hidden_size": 3}', '{"model_type": "nothing"}'):
        broken.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is no configuration of a model that transformers knows"):
            plan(str(broken), SHIPPED)
    broken.write_text(json.dumps({"model_type": "mamba", "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match="no full-attention layer to forget in"):
        plan(str(broken), SHIPPED)


def config_file(folder: Path, model_type: str, **values: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **values}))
    return str(path)


LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}


@pytest.mark.fault("A9", siblings="every other refusal: shared K/V, cross-attention, encoder-decoders, no interface")
@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("deepseek_v3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 9, **LATENT}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("gptj", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16}),
        ("recurrent_gemma", {"lru_width": 64}),
    ],
)
def test_what_a_cache_refuses_is_refused_with_the_same_sentence(
    model_type: str, values: dict[str, Any], tmp_path: Path
) -> None:
    small = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, **values}
    config = AutoConfig.for_model(model_type, **small)
    model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as refused:
        MemoryCache(model, Full())
    with pytest.raises(UnsupportedModelError) as planned:
        plan(str(tmp_path), SHIPPED)
    assert str(planned.value) == str(refused.value)


def test_a_model_without_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is an encoder-decoder"):
        plan(config_file(tmp_path, "t5"), SHIPPED)
    with pytest.raises(UnsupportedModelError, match="no causal language model of this ViTConfig"):
        plan(config_file(tmp_path, "vit"), SHIPPED)
    with pytest.raises(UnsupportedModelError, match="no attention heads"):
        plan(config_file(tmp_path, "xlstm"), SHIPPED)
    for model_type in ("pi0", "blt"):
        with pytest.raises(UnsupportedModelError, match="no configuration of a language model's layers"):
            plan(config_file(tmp_path, model_type), SHIPPED)
    with pytest.raises(UnsupportedModelError, match="latent attention"):
        plan(config_file(tmp_path, "dots3_note"), SHIPPED)


# https://huggingface.co/openai/gpt-oss-120b: its paper gives 116.83 billion parameters in 60.8 GiB, and 20.91 billion
# in 12.8 GiB for the smaller one
@pytest.mark.fault("A9", siblings="bitsandbytes, GPTQ, AWQ, fp8 and compressed-tensors likewise")
@pytest.mark.parametrize(("layers", "experts", "billions", "size"), [(36, 128, 116.83, 60.8), (24, 32, 20.91, 12.8)])
def test_gpt_oss_takes_what_its_paper_says(
    layers: int, experts: int, billions: float, size: float, tmp_path: Path
) -> None:
    left_out = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    quantisation = {"quant_method": "mxfp4", "modules_to_not_convert": left_out}
    path = config_file(
        tmp_path, "gpt_oss", num_hidden_layers=layers, num_local_experts=experts, quantization_config=quantisation
    )
    found = plan(path, SHIPPED)
    assert round(found.parameters / 1e9, 2) == billions
    assert round(found.weights / GIB, 1) == size
    assert "by mxfp4 at 4.25 bit" in found.quantised
    # half of the layers slide over 128 tokens; 8 heads of 64 in bfloat16
    assert found.full(131_072) == layers // 2 * (131_072 + 128) * 8 * 2 * 64 * 2


LINEAR = 70_553_706_496 - 2 * 128256 * 8192 - 161 * 8192  # numbers in linear layers of Llama 3 70B, but its head
OTHERS = 70_553_706_496 - LINEAR


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "symmetric": True}}},
                "ignore": ["lm_head"],
            },
            4 + 16 / 128,
        ),
    ],
)
def test_quantised_weights_are_counted_as_they_are_stored(
    quantisation: dict[str, Any], bits: float, tmp_path: Path
) -> None:
    config = read_config("meta-llama-3-70b")
    config.quantization_config = quantisation
    config.save_pretrained(tmp_path)
    found = plan(str(tmp_path), SHIPPED)
    assert found.weights == 2 * OTHERS + round(LINEAR * bits / 8)
    assert found.full(1) == 320 * 1024, "the cache is not quantised"
    if quantisation["quant_method"] == "awq":
        assert round(found.weights / 1e9, 1) == 39.8, "as its files on the hub"


def test_what_a_configuration_leaves_out_stays_as_it_is(tmp_path: Path) -> None:
    config = read_config("meta-llama-3-70b")
    config.quantization_config = {"quant_method": "fp8", "modules_to_not_convert": ["mlp"]}
    config.save_pretrained(tmp_path)
    attention = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024)
    expected = 2 * (70_553_706_496 - attention) + round(attention * (8 + 32 / 128**2) / 8)
    assert plan(str(tmp_path), SHIPPED).weights == expected
    config.quantization_config = {"quant_method": "aqlm"}
    config.save_pretrained(tmp_path)
    unknown = plan(str(tmp_path), SHIPPED)
    assert unknown.weights == 2 * 70_553_706_496 and "counted as 16 bit" in unknown.quantised


def test_keys_and_values_have_the_shapes_of_the_projections(tmp_path: Path) -> None:
    """Values narrower than keys, and sliding layers with other heads."""
    found = plan(config_file(tmp_path, "mimo_v2_flash"), SHIPPED)
    assert (found.layers, found.heads, found.width, found.value_width) == (9, 4, 192, 128)
    assert found.full(1) == 2 * (9 * 4 + 39 * 8) * (192 + 128)
