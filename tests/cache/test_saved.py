"""What was read can be saved, and asked in another process."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from sliding import sliding
from transformers import GptOssConfig, GptOssForCausalLM

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.saved import FILE, Saved
from namm.memory.files import MemoryFileError
from namm.policies import BUDGETED, H2O, Full, NAMMPolicy, Streaming

MEMORY = NAMM(NAMMConfig(update_interval=32, hidden=8, birth=True, key_value=True, state_dtype="bfloat16"))
POLICIES = [Full(), H2O(0.3, 32), Streaming(20, 32, sinks=2), NAMMPolicy(MEMORY, kept=0.25), NAMMPolicy(MEMORY)]


def with_sinks() -> GptOssForCausalLM:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.3,
    )
    return GptOssForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["full", "sliding", "sinks"])
def model(request, wild):
    return {"full": lambda: wild, "sliding": sliding, "sinks": with_sinks}[request.param]()


@torch.inference_mode()
def filled(model, ids, policy, engine="loops", settle=True, **options) -> MemoryCache:
    cache = MemoryCache(model, policy, engine)
    model(ids, past_key_values=cache, **options)
    if settle:
        cache.settle()
    return cache


@torch.inference_mode()
def goes_on(model, cache, ids, **options) -> torch.Tensor:
    """Logits of what follows, over an update and a decision."""
    found = []
    for start in range(0, 75, 25):
        found.append(model(ids[:, start : start + 25], past_key_values=cache, **options).logits)
        cache.settle()
    cache.check()
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.name}-{getattr(policy, 'kept', None)}")
@pytest.mark.parametrize("engine", ["loops", "padded"])
@pytest.mark.parametrize("settle", [True, False])
def test_a_loaded_cache_goes_on_as_the_one_that_was_saved(model, ids, tmp_path, policy, engine, settle) -> None:
    if engine == "padded" and not policy.takes_grids:
        pytest.skip("this policy has one engine")
    cache = filled(model, ids[:, :150], policy, engine, settle)
    before = cache.stats()
    cache.save(tmp_path / "text")
    assert cache.stats() == before, "saving changes nothing"
    loaded = MemoryCache.load(model, tmp_path / "text")
    assert loaded.engine == engine and loaded.get_seq_length() == 150
    assert loaded.stats().kept == before.kept and loaded.stats().seen == before.seen
    loaded.check()
    torch.testing.assert_close(goes_on(model, loaded, ids), goes_on(model, cache, ids), rtol=0, atol=0)
    assert loaded.stats().kept == cache.stats().kept


def test_the_file_holds_no_free_slots_and_little_else(wild, ids, tmp_path) -> None:
    cache = filled(wild, ids, NAMMPolicy(MEMORY, kept=0.25))
    cache.save(tmp_path, ids=ids, notes={"title": "a text"})
    stats = cache.stats()
    size = (tmp_path / FILE).stat().st_size
    assert stats.logical_kv_bytes < size < stats.held_bytes + 4 * ids.numel() + 40_000  # weights and metadata
    saved = Saved.read(tmp_path)
    assert torch.equal(saved.ids(), ids) and saved.header["notes"] == {"title": "a text"}


@pytest.mark.parametrize("engines", [("loops", "padded"), ("padded", "loops")])
def test_one_engine_reads_what_another_wrote_in_a_padded_batch(wild, ids, tmp_path, engines) -> None:
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, :37] = 0
    batch = torch.stack([ids[0, :90], ids[0, 100:190]])
    policy = NAMMPolicy(MEMORY, kept=0.3)
    cache = filled(wild, batch, policy, engines[0], False, attention_mask=mask)
    cache.save(tmp_path)
    loaded = MemoryCache.load(wild, tmp_path, engine=engines[1])
    more = torch.cat([mask, torch.ones(2, 40, dtype=torch.long)], dim=1)
    new = torch.stack([ids[0, 200:240], ids[0, 240:280]])
    with torch.inference_mode():
        found = [wild(new, past_key_values=each, attention_mask=more).logits for each in (loaded, cache)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    for own, other in zip(loaded.positions(), cache.positions(), strict=True):
        assert [[h.tolist() for h in row] for row in own] == [[h.tolist() for h in row] for row in other]


def test_another_process_and_another_dtype(reader_folder, tmp_path) -> None:
    from namm import load_model

    model, tokenizer = load_model(str(reader_folder), dtype="float32", device="cpu")
    ids = tokenizer("To be, or not to be, that is the question. " * 5, return_tensors="pt").input_ids
    cache = filled(model, ids, NAMMPolicy(MEMORY, kept=0.5))
    cache.save(tmp_path / "saved", tokenizer)
    expected = goes_on(model, cache.fork(), ids).argmax(-1).tolist()
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_saved import goes_on
from namm import MemoryCache, load_model
for dtype in ("float32", "bfloat16"):
    model, tokenizer = load_model({str(reader_folder)!r}, dtype=dtype, device="cpu")
    ids = tokenizer("To be, or not to be, that is the question. " * 5, return_tensors="pt").input_ids
    cache = MemoryCache.load(model, {str(tmp_path / "saved")!r}, tokenizer)
    assert cache.layers[0].rows[0].store.head(0)["keys"].dtype == model.dtype
    found = goes_on(model, cache, ids)
    assert found.isfinite().all()
    print(found.argmax(-1).tolist())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[0] == str(expected) and len(printed.splitlines()) == 2


class Words:
    """Of a tokenizer, what tells it from others."""

    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_what_does_not_belong_together_is_refused(wild, tiny, ids, tmp_path) -> None:
    filled(wild, ids, NAMMPolicy(MEMORY, kept=0.25)).save(tmp_path, Words("to", "be"))
    with pytest.raises(ValueError, match="read by another model"):
        MemoryCache.load(tiny, tmp_path)
    tuned = copy.deepcopy(wild)
    with torch.no_grad():
        next(tuned.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="read by another model"):
        MemoryCache.load(tuned, tmp_path)
    with pytest.raises(ValueError, match="another tokenizer"):
        MemoryCache.load(wild, tmp_path, Words("or", "not"))
    assert MemoryCache.load(wild, tmp_path, Words("to", "be")).stats().seen == (300,)
    with pytest.raises(ValueError, match=r"birth|spectrogram"):
        MemoryCache.load(wild, tmp_path, policy=H2O(0.5, 32))


def test_a_policy_of_ones_own_is_asked_for(wild, ids, tmp_path) -> None:
    class Own(H2O):
        name = "own"

    filled(wild, ids, Own(0.3, 32)).save(tmp_path)
    with pytest.raises(ValueError, match="policy="):
        MemoryCache.load(wild, tmp_path)
    assert MemoryCache.load(wild, tmp_path, policy=Own(0.3, 32)).stats().seen == (300,)


def test_what_is_damaged_is_refused(wild, ids, tmp_path) -> None:
    with pytest.raises(MemoryFileError, match="missing"):
        MemoryCache.load(wild, tmp_path / "nothing")
    filled(wild, ids, NAMMPolicy(MEMORY, kept=0.25)).save(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(MemoryFileError, match="damaged"):
            MemoryCache.load(wild, tmp_path)
    MEMORY.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(path)
    with pytest.raises(MemoryFileError, match=r"not written by MemoryCache\.save"):
        MemoryCache.load(wild, tmp_path)


def test_an_empty_or_interrupted_cache_is_not_saved(wild, ids, tmp_path) -> None:
    cache = MemoryCache(wild, Full())
    with pytest.raises(ValueError, match="empty"):
        cache.save(tmp_path)
    filled_one = filled(wild, ids, Full())
    filled_one.layers[0]._handed = (ids, ids)
    with pytest.raises(ValueError, match="interrupted"):
        filled_one.save(tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("name", sorted(BUDGETED))
def test_every_rule_is_made_again_from_its_settings(name) -> None:
    from namm.policies.described import Described

    policy = BUDGETED[name](0.4)
    made = Described.of(policy).make(None)
    assert type(made) is type(policy) and vars(made) == vars(policy)
