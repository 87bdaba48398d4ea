"""Gradients through a MemoryCache beside those of dense attention under the mask that its decisions make."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from dense import Decisions, attending
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from namm import NAMM, MemoryCache, NAMMConfig, UnsupportedModelError
from namm.cache import checkpointed
from namm.policies import H2O, Full, NAMMPolicy, Policy, SnapKV

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
MEMORY = NAMM(NAMMConfig(update_interval=16, window=8, hop=4))


def made(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    config._experts_implementation = "eager"  # of mixtures, which float64 needs
    return AutoModelForCausalLM.from_config(config).eval().double()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return made(LlamaConfig(**SMALL))


def ids_of(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 120, (rows, count), generator=torch.Generator().manual_seed(seed))


def mask_of(rows: int, tokens: int, padding: int) -> Tensor:
    """The second row has so many tokens of padding on the left."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[1:2, :padding] = 0
    return mask


def loss_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Of the logits of real tokens, with weights that make all of them count."""
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7), dtype=logits.dtype)
    return ((logits.log_softmax(-1) * weight).sum(-1) * mask).sum()


def gradients_of(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]


def under(
    model: PreTrainedModel, cache: MemoryCache, ids: Tensor, mask: Tensor, stops: list[int], told: Decisions | None
) -> Tensor:
    """Logits of a text that is given in calls that end there."""
    found, start = [], 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    for stop in stops:
        if told is not None:
            told.fed = mask[:, :stop].sum(1).tolist()
        now = slice(start, stop)
        options = {"attention_mask": mask[:, :stop], "position_ids": positions[:, now], "use_cache": True}
        found.append(model(ids[:, now], past_key_values=cache, **options).logits)
        start = stop
    return torch.cat(found, dim=1)


def compare(
    model: PreTrainedModel, policy: Policy, ids: Tensor, padding: int = 0, stops: list[int] | None = None
) -> dict[str, Tensor]:
    """Gradients under a policy, which are those of dense attention."""
    mask = mask_of(*ids.shape, padding)
    told, cache = Decisions(policy), MemoryCache(model, policy)
    if stops is not None:
        cache.train()
    with attending(model, told, mask.bool()):  # which layers with windows do in both cases
        logits = under(model, cache, ids, mask, stops or [ids.shape[1]], told)
        found = gradients_of(model, loss_of(logits, mask))
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        plain = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        expected = gradients_of(model, loss_of(plain, mask))
    assert isinstance(policy, Full) or cache.stats().kept_fraction < 1, "nothing was forgotten"
    assert (logits - plain)[mask.bool()].abs().max() < 1e-9
    close(found, expected, 1e-6)
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, wanted in expected.items():
        assert float((found[name] - wanted).norm() / wanted.norm()) <= tolerance, name


POLICIES: list[Callable[[], Policy]] = [
    lambda: H2O(budget=0.4, update_interval=16),
    lambda: SnapKV(budget=0.3, update_interval=16, across="model"),
    lambda: NAMMPolicy(MEMORY, offset=0.0),
    lambda: NAMMPolicy(MEMORY, kept=0.3),
    Full,
]


@pytest.mark.parametrize("make", POLICIES)
def test_gradients_are_those_of_dense_attention(llama: PreTrainedModel, make: Callable[[], Policy]) -> None:
    """Six blocks and a part, grouped heads, left padding; all parameters, float64."""
    compare(llama, make(), ids_of(2, 105), padding=13)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, attn_logit_softcapping=5.0, sliding_window=24, query_pre_attn_scalar=8),
        GptOssConfig(**SMALL, sliding_window=24, num_local_experts=2, num_experts_per_tok=2),
    ],
    ids=["softcap", "sinks"],
)
def test_softcap_sinks_and_layers_with_windows(config: PretrainedConfig) -> None:
    model = made(config)
    found = compare(model, H2O(budget=0.3, update_interval=16), ids_of(2, 90), padding=7)
    sinks = [gradient for name, gradient in found.items() if "sinks" in name]
    assert len(sinks) == (2 if isinstance(config, GptOssConfig) else 0) and all(own.abs().min() > 0 for own in sinks)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(50, 110),
    padding=st.integers(0, 40),
    rows=st.integers(1, 2),
    kind=st.integers(0, len(POLICIES) - 1),
    cuts=st.lists(st.integers(1, 109), max_size=5),
)
def test_gradients_pass_through_any_calls_of_a_cache_in_training(
    llama: PreTrainedModel, tokens: int, padding: int, rows: int, kind: int, cuts: list[int]
) -> None:
    """The first call goes beyond the padding, since a mask that calls all tokens padding is refused."""
    stops = sorted({cut for cut in cuts if padding < cut < tokens} | {tokens})
    policy = POLICIES[kind]()
    compare(llama, policy, ids_of(rows, tokens, seed=tokens), padding=padding if rows == 2 else 0, stops=stops)


@pytest.mark.parametrize("stops", [None, [40, 90, 91, 120]])
def test_layers_that_are_computed_again_give_the_same(llama: PreTrainedModel, stops: list[int] | None) -> None:
    """Gradient checkpointing: bit by bit the same, the cache is written once, and the model is left as it was."""
    model, ids = copy.deepcopy(llama), ids_of(2, 120)
    mask = mask_of(2, 120, 9)
    found = []
    for again in (False, True):
        if again:
            model.train().gradient_checkpointing_enable()
        cache = MemoryCache(model, NAMMPolicy(MEMORY, kept=0.3))
        if stops is not None:
            cache.train()
        logits = under(model, cache, ids, mask, stops or [120], None)
        before = cache.positions()
        found.append(gradients_of(model, loss_of(logits, mask)))
        cache.check()
        for layer, same in zip(before, cache.positions(), strict=True):
            assert all(torch.equal(*pair) for row in zip(layer, same, strict=True) for pair in zip(*row, strict=True))
    close(found[1], found[0], 1e-12)
    assert not any("_can_checkpoint_with_cache" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("budget", [12, 40])
def test_calls_leave_no_more_than_is_kept(llama: PreTrainedModel, budget: int) -> None:
    """Of four heads, for the backward passes of later calls; the last call has left nothing yet."""
    ids, stops = ids_of(1, 512), list(range(64, 513, 64))
    cache = MemoryCache(llama, NAMMPolicy(MEMORY, budget=budget))
    cache.train()
    under(llama, cache, ids, torch.ones_like(ids), stops, None)
    left = [[len(each.keys) for each in layer.tape._past] for layer in cache.layers]
    assert [len(own) for own in left] == [7, 7]
    assert sum(own[0] for own in left) == 4 * budget and max(map(sum, zip(*left, strict=True))) <= 4 * budget


def test_what_was_read_without_a_gradient_is_constant(llama: PreTrainedModel) -> None:
    ids, policy = ids_of(1, 90), H2O(budget=0.4, update_interval=16)
    told, cache = Decisions(policy), MemoryCache(llama, policy)
    results = []
    with attending(llama, told, torch.ones_like(ids).bool()):
        for there in (cache, DynamicCache()):
            told.fed = [50]
            with torch.no_grad():
                llama(ids[:, :50], past_key_values=there)
            cache.train()
            told.fed = [90]
            results.append(gradients_of(llama, llama(ids[:, 50:], past_key_values=there).logits.square().mean()))
            cache.reset()
    close(*results, 1e-6)


@pytest.mark.fault("A4", siblings="later calls without train(), other engines, packed caches, rehearsals")
def test_where_no_gradient_passes_the_backward_pass_says_why(llama: PreTrainedModel) -> None:
    model, ids = copy.deepcopy(llama).float(), ids_of(1, 60)
    rule = H2O(budget=0.5, update_interval=16)
    for options in ({"engine": "padded"}, {"bits": 8}):
        loss = model(ids, past_key_values=MemoryCache(model, rule, **options)).logits.sum()
        with pytest.raises(UnsupportedModelError, match="engine 'loops' without bits"):
            loss.backward()
    cache = MemoryCache(model, rule)
    model(ids, past_key_values=cache)
    with pytest.raises(UnsupportedModelError, match="one call, or call train"):
        model(ids, past_key_values=cache).logits.sum().backward()


def test_a_cache_in_training_refuses_what_would_lose_gradients(llama: PreTrainedModel) -> None:
    ids, mask = ids_of(2, 60), mask_of(2, 80, 0)
    cache = MemoryCache(llama, H2O(budget=0.5, update_interval=16))
    cache.train()
    llama(ids, past_key_values=cache)
    for move in (lambda: cache.batch_select_indices(torch.tensor([0])), cache.fork):
        with pytest.raises(UnsupportedModelError, match="in training"):
            move()
    with pytest.raises(RuntimeError, match="before train"):
        cache.train()
    mask[0, :5] = 0
    with pytest.raises(UnsupportedModelError, match="hide tokens"):
        llama(ids[:, :20], attention_mask=mask, past_key_values=cache)
    cache.reset()
    cache.train(False)
    llama(ids, past_key_values=cache)
    cache.batch_select_indices(torch.tensor([1, 0]))


@pytest.mark.parametrize("layers_too", [False, True])
def test_calls_that_are_computed_again_give_the_same(llama: PreTrainedModel, layers_too: bool) -> None:
    """A text in pieces, decided on between; of each piece only its loss is left, and nothing of the model's inside."""
    model, ids, found = copy.deepcopy(llama), ids_of(2, 120), []
    mask = mask_of(2, 120, 9)
    positions = (mask.cumsum(1) - 1).clamp_min(0)

    def lost(start: int, stop: int, cache: MemoryCache) -> Tensor:
        options = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop], "use_cache": True}
        logits = model(ids[:, start:stop], past_key_values=cache, **options).logits
        return loss_of(logits, mask[:, start:stop])

    for again in (False, True):
        if again and layers_too:
            model.train().gradient_checkpointing_enable()
        cache = MemoryCache(model, NAMMPolicy(MEMORY, kept=0.3))
        cache.train()
        losses = []
        for span in ((0, 40), (40, 90), (90, 91), (91, 120)):
            losses.append(checkpointed(cache, lost, *span, cache) if again else lost(*span, cache))
            cache.settle()
        before = cache.positions()
        found.append(gradients_of(model, torch.stack(losses).sum()))
        cache.check()
        assert cache.get_seq_length() == 120
        for layer, same in zip(before, cache.positions(), strict=True):
            assert all(torch.equal(*pair) for row in zip(layer, same, strict=True) for pair in zip(*row, strict=True))
    close(found[1], found[0], 1e-12)
    assert not any("_can_checkpoint_with_cache" in module.__dict__ for module in model.modules())


def test_of_calls_that_are_computed_again_one_at_a_time_is_held(llama: PreTrainedModel) -> None:
    """What the model has made inside is gone before the backward pass, which makes it once more, call by call."""
    cache = MemoryCache(llama, NAMMPolicy(MEMORY, budget=20))
    cache.train()
    inside: list[StorageWeakRef] = []
    most = 0

    def watch(module: nn.Module, given: object, made: Tensor) -> None:
        nonlocal most
        inside.append(StorageWeakRef(made.untyped_storage()))
        most = max(most, sum(not storage.expired() for storage in inside))

    hooks = [layer.mlp.act_fn.register_forward_hook(watch) for layer in llama.model.layers]
    pieces = ids_of(1, 256).split(64, dim=1)
    losses = [
        checkpointed(cache, lambda own: llama(own, past_key_values=cache).logits.square().mean(), piece)
        for piece in pieces
    ]
    assert len(inside) == 8 and all(storage.expired() for storage in inside)
    torch.stack(losses).sum().backward()
    for hook in hooks:
        hook.remove()
    assert len(inside) == 16 and most == 2, "both layers of one call"


def test_what_is_checkpointed_calls_the_model_once(llama: PreTrainedModel) -> None:
    ids, rule = ids_of(1, 60), H2O(budget=0.5, update_interval=16)
    cache = MemoryCache(llama, rule)
    with pytest.raises(ValueError, match="call train"):
        checkpointed(cache, lambda: llama(ids, past_key_values=cache).logits)
    cache.train()
    with pytest.raises(ValueError, match="call the model once"):
        checkpointed(cache, lambda: None)
    windows = made(Gemma2Config(**SMALL, sliding_window=24))
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        checkpointed(MemoryCache(windows, rule), lambda: None)
    plain = MemoryCache(llama, rule)
    plain.train()
    loss = checkpoint(lambda: llama(ids, past_key_values=plain).logits.sum(), use_reentrant=False)
    with pytest.raises(UnsupportedModelError, match="namm.cache.checkpointed"):
        loss.backward()


def test_layers_before_the_first_one_that_learns_are_computed_again_too(llama: PreTrainedModel) -> None:
    """Of the first layer only what follows attention learns, so that its queries want no gradient."""
    ids, found = ids_of(1, 90), []
    for again in (False, True):
        model = copy.deepcopy(llama)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("mlp" in name)
        if again:
            model.train().gradient_checkpointing_enable()
        cache = MemoryCache(model, H2O(budget=0.3, update_interval=16))
        cache.train()
        for piece in ids.split(50, dim=1):
            loss = model(piece, past_key_values=cache, use_cache=True).logits.square().mean()
        loss.backward()
        found.append({name: own.grad for name, own in model.named_parameters() if own.grad is not None})
    assert len(found[0]) == 6
    close(found[1], found[0], 1e-12)


def test_checkpoints_that_cannot_be_served_are_refused(llama: PreTrainedModel) -> None:
    ids, rule = ids_of(1, 60), H2O(budget=0.5, update_interval=16)
    model = copy.deepcopy(llama).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    loss = model(ids, past_key_values=MemoryCache(model, rule), use_cache=True).logits.sum()
    with pytest.raises(UnsupportedModelError, match="use_reentrant=False"):
        loss.backward()
    windows = made(Gemma2Config(**SMALL, sliding_window=24)).train()
    windows.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedModelError, match="gradient_checkpointing_disable"):
        windows(ids, past_key_values=MemoryCache(windows, rule), use_cache=True)


def test_under_no_grad_a_checkpointed_model_forgets_all_the_same(llama: PreTrainedModel) -> None:
    """transformers would take the cache away, and every token be attended to."""
    ids, rule = ids_of(1, 60), H2O(budget=0.3, update_interval=16)
    model = copy.deepcopy(llama)
    with torch.no_grad():
        expected = model(ids, past_key_values=MemoryCache(model, rule)).logits
        model.train().gradient_checkpointing_enable()
        cache = MemoryCache(model, rule)
        assert torch.equal(model(ids, past_key_values=cache).logits, expected)
    assert cache.stats().seen == (60,)
