"""Steps of decoding are captured between two updates; on a CPU by a tape that does again what was launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tape import Tape
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import namm
from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.graphs import graphed
from namm.policies import NAMMPolicy, Streaming

pytest.importorskip("triton", reason="the extra 'ragged' is for Linux")

MEMORY = NAMM(NAMMConfig(hidden=4, update_interval=8, window=4, hop=2))


@pytest.fixture(autouse=True)
def _no_tapes() -> Iterator[None]:
    Tape.made.clear()
    yield
    Tape.made.clear()


def model_of(layers: int) -> PreTrainedModel:
    """Of small layers, whose weights are so large that it matters what is attended to, and where it stands."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return model_of(1)


def ids_of(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, 200, (rows, tokens), generator=torch.Generator().manual_seed(1))


def new_cache(model: Any) -> MemoryCache:
    return MemoryCache(model, NAMMPolicy(MEMORY, kept=0.5), engine="ragged")


def held(cache: MemoryCache) -> Any:
    cache.check()
    return [[[h.tolist() for h in row] for row in layer] for layer in cache.positions()], cache.stats()


@pytest.mark.parametrize(("layers", "padding", "replays"), [(2, 0, [3, 2]), (1, 3, [3, 1])])
def test_what_is_generated_is_the_same(layers: int, padding: int, replays: list[int]) -> None:
    """With an update on the way; a padded row has its updates at other steps."""
    model, ids = model_of(layers), ids_of(2 if padding else 1, 11)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    said = []
    for graph in (False, True):
        cache = new_cache(model)
        options: Any = {
            "attention_mask": mask,
            "past_key_values": cache,
            "max_new_tokens": 9 + len(ids) - 1,
            "do_sample": True,
        }
        torch.manual_seed(3)
        if graph:
            with graphed(cache, Tape):
                output = model.generate(ids, **options)
        else:
            output = model.generate(ids, **options)
        said.append((output.tolist(), *held(cache)))
    assert said[0] == said[1]
    assert [tape.replays for tape in Tape.made] == replays
    for tape in Tape.made:
        assert tape.launched[0] and all(addresses == tape.launched[0] for addresses in tape.launched)


def steps(model: Any, cache: MemoryCache, ids: torch.Tensor, change: Callable[[int], None] = lambda step: None) -> Any:
    """Logits of a prompt's steps without masks and positions, token by token."""
    with torch.no_grad():
        model(ids[:, :10], past_key_values=cache)
        found = []
        for step, one in enumerate(ids[:, 10:].split(1, dim=1)):
            change(step)
            found.append(model(one, past_key_values=cache).logits)
    return torch.cat(found, dim=1), held(cache)


def test_positions_are_those_of_the_tokens_where_none_are_given(model: PreTrainedModel) -> None:
    ids = ids_of(1, 15)
    expected, one = steps(model, new_cache(model), ids)
    cache = new_cache(model)
    with graphed(cache, Tape):
        found, other = steps(model, cache, ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert one == other and [tape.replays for tape in Tape.made] == [4]


def test_what_changes_between_two_steps_is_seen(model: PreTrainedModel) -> None:
    """A decision, another order of rows, and a mask that hides tokens; the other cache in between is as ever."""
    ids, others = ids_of(2, 20), new_cache(model)

    def change(cache: MemoryCache) -> Callable[[int], None]:
        def changed(step: int) -> None:
            if step == 3:
                cache.settle()
            if step == 6:
                cache.reorder_cache(torch.tensor([1, 0]))
            if step == 8:
                mask = torch.ones(2, 10 + step + 1)
                mask[1, 1:7] = 0
                model(ids[:, :1], attention_mask=mask, past_key_values=cache)
                model(ids[:, :3], past_key_values=others)

        return changed

    runs = []
    for graph in (False, True):
        cache = new_cache(model)
        if graph:
            with graphed(cache, Tape):
                runs.append(steps(model, cache, ids, change(cache)))
        else:
            runs.append(steps(model, cache, ids, change(cache)))
    torch.testing.assert_close(runs[1][0], runs[0][0], atol=1e-5, rtol=1e-5)
    assert runs[0][1] == runs[1][1] and sum(tape.replays for tape in Tape.made) >= 4


def test_a_step_that_cannot_be_captured_leaves_the_cache_as_it_was(model: PreTrainedModel) -> None:
    class Broken(Tape):
        def capture(self, step: Callable[[], Any]) -> Any:
            super().capture(step)
            raise RuntimeError("no more memory")

    ids = ids_of(1, 15)
    expected, one = steps(model, new_cache(model), ids)
    cache = new_cache(model)
    with graphed(cache, Broken), pytest.raises(RuntimeError, match=r"can't be captured .* \(no more memory\)$"):
        steps(model, cache, ids)
    found = [model(token, past_key_values=cache).logits for token in ids[:, 11:].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), expected[:, 1:], atol=1e-5, rtol=1e-5)
    assert held(cache) == one


def test_a_wait_within_a_step_is_told(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape is no easier than CUDA."""
    cache, forward = new_cache(model), model.forward

    def waits(*arguments: Any, **given: Any) -> Any:
        if int(given["input_ids"][0, 0]) >= 0:
            return forward(*arguments, **given)

    monkeypatch.setattr(model, "forward", waits)
    with graphed(cache, Tape), torch.no_grad():
        model(input_ids=ids_of(1, 10), past_key_values=cache)
        model(input_ids=ids_of(1, 1), past_key_values=cache)
        with pytest.raises(RuntimeError, match=r"can't be captured .*not permitted when stream is capturing"):
            model(input_ids=ids_of(1, 1), past_key_values=cache)
    cache.check()
    assert model.forward is waits


def test_what_cannot_be_captured_is_refused_before(model: PreTrainedModel) -> None:
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    sliding = Gemma3ForCausalLM(config).eval()
    never = MemoryCache(model, namm.policies.Full(), engine="ragged")
    for cache, reason in [
        (new_cache(model), "the model is on cpu"),
        (MemoryCache(model, NAMM()), "the engine 'loops'"),
        (MemoryCache(sliding, Streaming(0.5), engine="ragged"), "layers that don't forget"),
        (never, "the engine 'loops'" if never.engine == "loops" else "policy 'full' never decides"),
    ]:
        with pytest.raises(ValueError, match=f"^steps of decoding can't be captured: {reason}"), namm.graphed(cache):
            pass
    assert "forward" not in vars(model)
