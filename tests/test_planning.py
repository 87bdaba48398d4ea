from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from namm import NAMM, MemoryCache, ModelNotFoundError, NAMMConfig
from namm.planning import packaged_configs, plan
from namm.policies import Full, NAMMPolicy

SHIPPED = NAMM.from_pretrained("smollm2-135m").config
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
    # a quarter, and the block of 256 not yet decided: 33,024 tokens; each 512 bytes of K and V, two averages of 17
    # magnitudes in bfloat16 and a position of four bytes, in 640 heads
    tokens = 131_072 // 4 + 256
    columns = 80 * 8 * tokens * (512 + 2 * 17 * 2 + 4)
    # 256 queries of 64 heads of 128 in bfloat16 with 64 free slots, and 16 carried over with a normaliser in float32
    queries = 80 * 64 * (320 * 128 * 2 + 16 * (128 * 2 + 4))
    assert found.kept(131_072, 0.25) == columns + queries
    assert round(found.kept(131_072, 0.25) / GIB, 2) == 11.91


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
