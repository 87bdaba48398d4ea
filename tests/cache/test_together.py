"""Caches that take a step together are as caches that take it alone."""

from __future__ import annotations

import pytest
import torch
from sliding import sliding
from torch import Tensor

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.together import Together, step
from namm.policies import H2O, Full, NAMMPolicy, Policy

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


def test_layers_with_windows_can_not_join(wild) -> None:
    assert Together.can_join(MemoryCache(wild, Full()))
    assert not Together.can_join(MemoryCache(sliding(), Full()))
