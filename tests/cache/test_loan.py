"""A model is left as it was found, whatever a cache does with it."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, LlamaForCausalLM, PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig, UnsupportedModelError
from namm.cache.loan import IMPLEMENTATION, own_implementation
from namm.policies import H2O, Full, NAMMPolicy

MEMORY = NAMM(NAMMConfig(update_interval=64))


@pytest.fixture
def model(tiny: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(tiny)


def use(model: PreTrainedModel, ids: Tensor) -> MemoryCache:
    cache = MemoryCache(model, NAMMPolicy(MEMORY))
    model.generate(ids, past_key_values=cache, max_new_tokens=5, pad_token_id=0)
    return cache


@pytest.mark.fault("A5", siblings="the names in the configuration; flash and flex attention; refine; two threads")
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2", "flex_attention"])
def test_the_model_keeps_its_attention_implementation(model, ids, implementation: str) -> None:
    model.config._attn_implementation_internal = implementation  # flash needs a GPU, but nothing here calls it
    cache = use(model, ids)
    assert cache.stats().kept_fraction < 1
    assert model.config._attn_implementation == implementation


@pytest.mark.fault("A5")
@torch.no_grad()
def test_an_eager_model_gives_its_attentions(model, ids) -> None:
    model.set_attn_implementation("eager")
    expected = model(ids, output_attentions=True)
    use(model, ids)
    found = model(ids, output_attentions=True)
    assert len(found.attentions) == 3 and torch.equal(found.attentions[2], expected.attentions[2])
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.fault("A5")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_cache_serves_any_implementation_also_one_set_later(model, ids, implementation: str) -> None:
    cache = MemoryCache(model, Full())
    model.set_attn_implementation(implementation)
    mask = torch.ones_like(ids)
    mask[:, :9] = 0
    where = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=where).logits
        found = model(ids, attention_mask=mask, position_ids=where, past_key_values=cache).logits
    torch.testing.assert_close(found[:, 9:], expected[:, 9:], atol=1e-5, rtol=1e-4)
    assert cache.stats().seen == (ids.shape[1] - 9,)


@pytest.mark.fault("A5")
def test_continuous_batching_still_works(model, ids) -> None:
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    small = ContinuousBatchingConfig(page_size=32, num_blocks=8, max_batch_tokens=64)
    prompt = ids[0, :20].tolist()

    def answer() -> list[int]:
        found = model.generate_batch([prompt], generation_config=config, continuous_batching_config=small)
        return next(iter(found.values())).generated_tokens

    expected = answer()
    use(model, ids)
    assert answer() == expected and len(expected) == 4


@pytest.mark.fault("A5")
@torch.no_grad()
def test_two_caches_and_a_plain_one_in_three_threads(model, ids) -> None:
    model.set_attn_implementation("eager")
    texts = [ids, ids.flip(1), ids.roll(7, 1)]
    policies = [NAMMPolicy(MEMORY), H2O(0.25, 64), None]

    def answer(text: Tensor, policy) -> list[Tensor]:
        found = []
        with torch.no_grad():
            for _ in range(6):
                if policy is None:
                    plain = DynamicCache(config=model.config)
                    found.append(model(text, past_key_values=plain, output_attentions=True).attentions[1])
                else:
                    found.append(model(text, past_key_values=MemoryCache(model, policy)).logits)
        return found

    expected = [answer(text, policy)[0] for text, policy in zip(texts, policies, strict=True)]
    results: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: answer(texts[n], policies[n])})) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        assert len(results.get(n, ())) == 6, "a thread failed"
        for found in results[n]:
            torch.testing.assert_close(found, expected[n], atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("where", ["self_attn", "mlp"])
def test_a_call_that_is_interrupted_gives_back(model, ids, where: str) -> None:
    cache = MemoryCache(model, Full())

    def interrupt(*args) -> None:
        raise KeyboardInterrupt

    part = getattr(model.model.layers[1], where)
    handle = (part.o_proj if where == "self_attn" else part).register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids, past_key_values=cache)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"


def test_what_a_dead_cache_had_borrowed_is_given_back(model, ids) -> None:
    cache = MemoryCache(model, Full())
    cache.get_mask_sizes(5, 0)  # and the model never comes back for the mask
    assert model.config._attn_implementation == IMPLEMENTATION and own_implementation(model.config) == "sdpa"
    mask = torch.ones_like(ids)
    mask[:, :9] = 0
    with torch.no_grad():
        lent = model(ids, attention_mask=mask).logits  # another call meanwhile
    del cache
    gc.collect()
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(model(ids, attention_mask=mask).logits, lent)


@torch.no_grad()
def test_a_copied_cache_goes_on_alone(model, ids) -> None:
    cache = use(model, ids)
    other = copy.deepcopy(cache)
    following = ids[:, :70]
    assert torch.equal(model(following, past_key_values=other).logits, model(following, past_key_values=cache).logits)


@pytest.mark.fault("A20", siblings="a cache of another model; a cache in a file")
@torch.no_grad()
def test_a_saved_cache_is_attached_to_its_model(model, ids) -> None:
    cache = use(model, ids)
    loaded = pickle.loads(pickle.dumps(cache))
    following = ids[:, :70]
    with pytest.raises(UnsupportedModelError, match="attach"):
        model(following, past_key_values=pickle.loads(pickle.dumps(cache)))
    assert model.config._attn_implementation == "sdpa"
    loaded.attach(model)
    expected = model(following, past_key_values=cache).logits
    assert torch.equal(model(following, past_key_values=loaded).logits, expected)
    loaded.check()


@pytest.mark.fault("A20")
def test_a_cache_given_to_another_model_is_refused(tiny, model, ids) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(**tiny.config.to_dict() | {"num_hidden_layers": 5})
    deeper = LlamaForCausalLM(config).eval()
    for other in (model, deeper):
        with pytest.raises(UnsupportedModelError, match="another (model|one)"), torch.no_grad():
            other(ids, past_key_values=MemoryCache(tiny, Full()))
        assert other.config._attn_implementation == "sdpa"
    with pytest.raises(UnsupportedModelError, match="other layers"):
        MemoryCache(tiny, Full()).attach(deeper)


@pytest.mark.fault("A20")
def test_what_is_no_model_is_named(tiny) -> None:
    with pytest.raises(TypeError, match=r"load_model returns \(model, tokenizer\)"):
        MemoryCache((tiny, None), Full())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Linear"):
        MemoryCache(torch.nn.Linear(1, 1), Full())  # type: ignore[arg-type]


@torch.no_grad()
def test_a_model_that_peft_wraps_is_served(tiny, ids) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = tiny

        def get_base_model(self) -> PreTrainedModel:
            return self.base

        def forward(self, *args, **kwargs):
            return self.base(*args, **kwargs)

    cache = MemoryCache(Wrapped(), H2O(0.25, 64))  # type: ignore[arg-type]
    Wrapped()(ids, past_key_values=cache)
    assert cache.stats().kept_fraction < 0.5
