"""Caches that take a step together are as caches that take it alone."""

from __future__ import annotations

import pytest
import torch
from sliding import sliding
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaForCausalLM,
    OPTConfig,
    Qwen3Config,
)

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache import packed
from namm.cache.codes import decode
from namm.cache.together import Together, can_join, step
from namm.policies import H2O, Full, NAMMPolicy, Policy

SMALL = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIG = NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True, key_value=True)
POLICIES: dict[str, Policy] = {
    "namm": NAMMPolicy(NAMM(CONFIG), kept=0.4),
    "offset": NAMMPolicy(NAMM(CONFIG), offset=0.1),
    "h2o": H2O(0.3, 16),
    "full": Full(),
}


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(3, 200, (1, count), generator=torch.Generator().manual_seed(seed))


def alone(model, cache: MemoryCache, prompt: Tensor, new: int) -> list[int]:
    with torch.inference_mode():
        logits = model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        said = [int(logits.argmax())]
        while len(said) < new:
            said.append(int(model(torch.tensor([said[-1:]]), past_key_values=cache).logits[:, -1].argmax()))
    return said


def same(found: MemoryCache, wanted: MemoryCache) -> None:
    assert found.stats() == wanted.stats()
    for layers in zip(found.positions(), wanted.positions(), strict=True):
        for own, other in zip(layers[0][0], layers[1][0], strict=True):
            assert torch.equal(own, other)
    found.check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bits", [None, 4])
def test_rows_join_and_leave(wild, policy: str, bits: int | None) -> None:
    """Prompts of other lengths, each joining at another step and leaving when it has said enough."""
    lengths, joins, wants = (5, 70, 33, 1), (0, 3, 3, 11), (40, 9, 21, 30)
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    caches = [MemoryCache(wild, POLICIES[policy], bits=bits) for _ in prompts]
    said: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        for turn in range(50):
            for row, prompt in enumerate(prompts):
                if joins[row] == turn:
                    said[row].append(int(wild(prompt, past_key_values=caches[row]).logits[0, -1].argmax()))
            rows = [row for row in range(4) if said[row] and len(said[row]) < wants[row]]
            if rows:
                together = Together([caches[row] for row in rows])
                logits = step(wild, together, torch.tensor([said[row][-1:] for row in rows]))
                assert not together.failed
                for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
                    said[row].append(token)
    for row, prompt in enumerate(prompts):
        other = MemoryCache(wild, POLICIES[policy], bits=bits)
        assert said[row] == alone(wild, other, prompt, wants[row])
        same(caches[row], other)
    assert wild.config._attn_implementation != "namm_memory"


def test_forks_of_one_text(wild) -> None:
    text = MemoryCache(wild, POLICIES["namm"])
    with torch.inference_mode():
        wild(tokens(100, 1), past_key_values=text)
        text.settle()
        kept = text.stats()
        forks = [text.fork() for _ in range(3)]
        together, said = Together(forks), []
        for turn in range(20):
            said.append(step(wild, together, torch.tensor([[turn], [turn + 50], [turn + 100]])))
    with torch.inference_mode():
        for row in range(3):
            fork = text.fork()
            for turn in range(20):
                logits = wild(torch.tensor([[turn + 50 * row]]), past_key_values=fork).logits[0, -1]
                torch.testing.assert_close(said[turn][row], logits, rtol=1e-4, atol=1e-4)
            same(forks[row], fork)
    assert text.stats().kept == kept.kept


def test_what_several_read_is_unpacked_once_a_step(wild, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MemoryCache(wild, POLICIES["namm"], bits=4)
    with torch.inference_mode():
        wild(tokens(100, 1), past_key_values=text)
        text.settle()
        unpacked = []
        monkeypatch.setattr(packed, "decode", lambda *given: unpacked.append(0) or decode(*given))
        for several in (1, 3):
            unpacked.clear()
            step(wild, Together([text.fork() for _ in range(several)]), torch.full((several, 1), 7))
            held = [layer.rows[0].store.held for layer in text.layers]
            assert len(unpacked) == 2 * sum(own.heads for own in held), "keys and values of every head"
        assert not any(own._open for own in held), "nothing stays unpacked"
        other = text.fork(), text.fork()
        found = step(wild, Together(other), torch.tensor([[7], [8]]))
        for row, token in enumerate((7, 8)):
            wanted = wild(torch.tensor([[token]]), past_key_values=text.fork()).logits[0, -1]
            torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-4)


def test_what_fails_fails_alone(wild, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [MemoryCache(wild, Full()) for _ in range(3)]
    with torch.inference_mode():
        for seed, cache in enumerate(caches):
            wild(tokens(9, seed), past_key_values=cache)
        spare = [cache.fork() for cache in caches]
        monkeypatch.setattr(caches[1].layers[1].engine, "serve", lambda *given: 1 / 0)
        together = Together(caches)
        found = step(wild, together, torch.tensor([[3], [4], [5]]))
        assert list(together.failed) == [1] and isinstance(together.failed[1], ZeroDivisionError)
        for row in (0, 2):
            wanted = wild(torch.tensor([[3 + row]]), past_key_values=spare[row]).logits[0, -1]
            torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-4)


class CountsItself(LlamaForCausalLM):
    """Takes its positions from the cache, whatever it is given."""

    def forward(self, input_ids, position_ids=None, **options):
        return super().forward(input_ids, **options)


class TakesNone(LlamaForCausalLM):
    def forward(self, input_ids, past_key_values, logits_to_keep=0):
        return super().forward(input_ids, past_key_values=past_key_values, logits_to_keep=logits_to_keep)


def test_who_can_join(wild) -> None:
    def tried(model) -> bool:
        return can_join(model, lambda: MemoryCache(model, Full()))

    assert tried(wild) and not tried(sliding()), "layers with windows can't"
    for kind in (CountsItself, TakesNone):
        other = kind(wild.config).eval()
        other.load_state_dict(wild.state_dict())
        assert not tried(other), kind
    assert tried(LlamaForCausalLM(wild.config).to(torch.bfloat16).eval())


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3),
        Qwen3Config(**SMALL, head_dim=16),
        Gemma2Config(**SMALL, head_dim=16, layer_types=["full_attention"] * 2),
        GptOssConfig(**SMALL, head_dim=16, layer_types=["full_attention"] * 2, num_local_experts=4),
        OPTConfig(vocab_size=200, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, init_std=0.3),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families_join(config) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert can_join(model, lambda: MemoryCache(model, Full()))
