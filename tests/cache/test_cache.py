from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from namm import NAMM, MemoryCache, NAMMConfig, UnsupportedModelError
from namm.policies import BUDGETED, H2O, Full, NAMMPolicy, Policy, SnapKV, Streaming

MEMORY = NAMM(NAMMConfig(update_interval=64))
KEEP_ALL = [
    Full(),
    Streaming(budget=1.0, update_interval=64),
    H2O(budget=1.0, update_interval=64),
    SnapKV(budget=1.0, update_interval=64),
    NAMMPolicy(MEMORY, offset=1e9),
]
ALONE = [rule for rule in BUDGETED.values() if not rule.needs_rehearsal]
EVICTING = [rule(budget=0.25, update_interval=64, across="head") for rule in ALONE] + [NAMMPolicy(MEMORY)]


def named(policy: Policy) -> str:
    return policy.name


def run(model: PreTrainedModel, ids: Tensor, cache: MemoryCache, pieces: list[int], **kwargs: Tensor) -> Tensor:
    """Logits of a prompt that goes in in pieces (the last takes the rest), with the invariants checked after each."""
    outputs, start = [], 0
    for length in [*pieces, ids.shape[1]]:
        piece = ids[:, start : start + length]
        if piece.shape[1]:
            with torch.no_grad():
                outputs.append(model(piece, past_key_values=cache, **kwargs).logits)
            cache.check()
        start += length
    return torch.cat(outputs, dim=1)


def padded(ids: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of the whole sequence and of its first `length` tokens, padded on the left."""
    missing = ids.shape[1] - length
    short = torch.cat([torch.zeros(1, missing, dtype=torch.long), ids[:, :length]], dim=1)
    mask = torch.ones(2, ids.shape[1], dtype=torch.long)
    mask[1, :missing] = 0
    return torch.cat([ids, short]), mask, (mask.cumsum(1) - 1).clamp_min(0)


@pytest.mark.parametrize("policy", KEEP_ALL, ids=named)
@pytest.mark.parametrize("pieces", [[], [10, 1, 1, 100, 1]], ids=["whole", "pieces"])
def test_keeping_everything_equals_sdpa(tiny: PreTrainedModel, ids: Tensor, policy: Policy, pieces: list[int]) -> None:
    with torch.no_grad():
        expected = tiny(ids).logits
    cache = MemoryCache(tiny, policy)
    torch.testing.assert_close(run(tiny, ids, cache, pieces), expected, atol=1e-5, rtol=1e-4)
    assert cache.stats().kept_fraction == 1.0


@pytest.mark.parametrize("policy", EVICTING, ids=named)
def test_pieces_and_decoding_forget_like_one_call(tiny: PreTrainedModel, ids: Tensor, policy: Policy) -> None:
    whole, pieces = MemoryCache(tiny, policy), MemoryCache(tiny, policy)
    expected = run(tiny, ids, whole, [])
    actual = run(tiny, ids, pieces, [10, 1, 1, 53, 64, 1, 1, 100])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    assert whole.stats().kept == pieces.stats().kept
    assert whole.stats().kept_fraction < 0.95


@pytest.mark.parametrize("policy", [*KEEP_ALL, *EVICTING], ids=named)
def test_a_left_padded_batch_equals_single_runs(tiny: PreTrainedModel, ids: Tensor, policy: Policy) -> None:
    batch, mask, positions = padded(ids, 171)
    together = MemoryCache(tiny, policy)
    output = run(tiny, batch, together, [], attention_mask=mask, position_ids=positions)
    for row, length in ((0, 300), (1, 171)):
        alone = MemoryCache(tiny, policy)
        expected = run(tiny, ids[:, :length], alone, [])
        torch.testing.assert_close(output[row, 300 - length :], expected[0], atol=1e-4, rtol=1e-3)
        assert [layer[row] for layer in together.stats().kept] == [layer[0] for layer in alone.stats().kept]
    assert together.stats().seen == (300, 171)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_generate_equals_transformers_own_cache(tiny: PreTrainedModel, ids: Tensor, options: dict) -> None:
    batch, mask, _ = padded(ids[:, :100], 60)
    arguments = {"attention_mask": mask, "max_new_tokens": 40, "pad_token_id": 0} | options
    torch.manual_seed(0)
    expected = tiny.generate(batch, past_key_values=DynamicCache(config=tiny.config), **arguments)
    for policy in KEEP_ALL:
        torch.manual_seed(0)
        cache = MemoryCache(tiny, policy)
        assert torch.equal(tiny.generate(batch, past_key_values=cache, **arguments), expected), policy.name
        cache.check()


def test_beams_carry_their_own_memories(tiny: PreTrainedModel, ids: Tensor) -> None:
    """Greedy decoding of every beam's text alone must find the tokens that the beam kept."""
    policy = NAMMPolicy(NAMM(NAMMConfig(update_interval=16)))
    cache = MemoryCache(tiny, policy)
    output = tiny.generate(
        ids[:, :50],
        past_key_values=cache,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=30,
        min_new_tokens=30,
        pad_token_id=0,
    )
    cache.check()
    alone = MemoryCache(tiny, policy)
    run(tiny, output[:1, :-1], alone, [50] + [1] * 28)
    kept = [tuple(layer[row] for layer in cache.stats().kept) for row in range(3)]
    assert tuple(layer[0] for layer in alone.stats().kept) in kept


def test_moving_rows_moves_everything(tiny: PreTrainedModel, ids: Tensor) -> None:
    policy = NAMMPolicy(MEMORY)
    cache = MemoryCache(tiny, policy)
    run(tiny, torch.cat([ids, ids.flip(1)]), cache, [])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 1]))
    cache.check()
    following = torch.randint(3, 200, (1, 100))
    output = run(tiny, following.repeat(3, 1), cache, [])
    for row, text in enumerate([ids.flip(1), ids, ids]):
        alone = MemoryCache(tiny, policy)
        run(tiny, text, alone, [])
        torch.testing.assert_close(output[row], run(tiny, following, alone, [])[0], atol=1e-4, rtol=1e-3)


def test_a_second_turn_continues_the_same_cache(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, NAMMPolicy(MEMORY, offset=1e9))
    first = tiny.generate(ids[:, :90], past_key_values=cache, max_new_tokens=20, do_sample=False, pad_token_id=0)
    turn = torch.cat([first, ids[:, 200:260]], dim=1)
    second = tiny.generate(turn, past_key_values=cache, max_new_tokens=20, do_sample=False, pad_token_id=0)
    cache.check()
    expected = tiny.generate(turn, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert torch.equal(second, expected)
    assert cache.stats().seen == (second.shape[1] - 1,)


def test_prompts_shorter_than_a_block_lose_nothing(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, NAMMPolicy(MEMORY, offset=-1e9))
    run(tiny, ids[:, :63], cache, [])
    assert cache.stats().kept_fraction == 1.0
    run(tiny, ids[:, :1], cache, [])
    assert cache.stats().kept_tokens == 1.0  # the newest always stays


def test_stats_count_what_is_really_held(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, H2O(budget=0.25, update_interval=50))
    assert cache.stats().kept_fraction == 1.0 and cache.stats().held_bytes == 0
    run(tiny, ids, cache, [])
    stats = cache.stats()
    assert stats.seen == (300,) and stats.layers == (0, 1, 2)
    assert stats.kept == (((75, 75),),) * 3
    assert stats.logical_kv_bytes == 3 * 2 * 75 * 2 * 16 * 4
    assert stats.kv_bytes == 3 * 2 * 80 * 2 * 16 * 4  # whole steps
    assert stats.full_bytes == 3 * 2 * 300 * 2 * 16 * 4
    assert stats.state_bytes == 3 * 2 * 80 * (4 + 4)
    assert stats.query_bytes == 0
    assert "kept 75 (25.0%)" in str(stats)


def test_no_full_size_cache_is_held_while_a_prompt_goes_in(tiny: PreTrainedModel) -> None:
    sizes = []

    class Watching(Streaming):
        def select(self, heads):
            sizes.append(max(head.tokens for head in heads))
            return super().select(heads)

    cache = MemoryCache(tiny, Watching(budget=40, update_interval=32))
    run(tiny, torch.randint(3, 200, (1, 1000)), cache, [])
    assert max(sizes) == 72


def test_a_policy_of_ones_own(tiny: PreTrainedModel, ids: Tensor) -> None:
    class EverySecond(Policy):
        def keep(self, head):
            return head.positions % 2 == 0

    cache = MemoryCache(tiny, EverySecond())
    run(tiny, ids, cache, [])
    assert cache.stats().kept[0][0][0] == 128 + 1 + 44  # one block of 256 halved, its newest token, and the rest


def test_answers_of_the_wrong_form_are_named(tiny: PreTrainedModel, ids: Tensor) -> None:
    class Wrong(Policy):
        def keep(self, head):
            return head.positions

    class NoTensor(Policy):
        def keep(self, head):
            return [True] * head.tokens

    with pytest.raises(
        TypeError, match=r"Wrong must answer with a bool tensor \[256\], .* not with torch.int32 \[256\]"
    ):
        run(tiny, ids, MemoryCache(tiny, Wrong()), [])
    with pytest.raises(TypeError, match=r"NoTensor must answer .* not with list"):
        run(tiny, ids, MemoryCache(tiny, NoTensor()), [])


def test_stats_say_what_is_not_decided_on_yet(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, Streaming(0.5, update_interval=64))
    run(tiny, ids, cache, [])
    fresh = ids.shape[1] % 64
    assert cache.stats().undecided == (fresh,) and f"{fresh} of them not decided on yet" in str(cache.stats())
    cache.settle()
    assert cache.stats().undecided == (0,) and "not decided" not in str(cache.stats())
    whole = MemoryCache(tiny, Full())
    run(tiny, ids, whole, [])
    assert whole.stats().undecided == (0,)


def test_rolling_back_is_refused(tiny: PreTrainedModel, ids: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="rolled back"):
        tiny.generate(
            ids, past_key_values=MemoryCache(tiny, Full()), prompt_lookup_num_tokens=3, max_new_tokens=5, pad_token_id=0
        )
    with pytest.raises(UnsupportedModelError, match="rolled back"):
        MemoryCache(tiny, Full()).crop(-1)


def test_another_batch_size_is_refused(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, Full())
    run(tiny, ids, cache, [])
    with pytest.raises(ValueError, match="holds 1 batch rows and was given 2"):
        tiny(ids[:, :5].repeat(2, 1), past_key_values=cache)


def test_nan_in_attention_is_named() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 1, batch row 0, KV head 0: attention gave NaN"), torch.no_grad():
        model(torch.randint(0, 50, (1, 64)), past_key_values=MemoryCache(model, MEMORY))


def test_an_empty_prompt_is_refused_by_the_model(tiny: PreTrainedModel) -> None:
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        tiny.generate(torch.zeros(1, 0, dtype=torch.long), past_key_values=MemoryCache(tiny, Full()), max_new_tokens=2)


def test_masks_that_are_not_causal_with_padding_are_refused(tiny: PreTrainedModel, ids: Tensor) -> None:
    two_way = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="not causal with padding"):
        tiny(ids[:, :20], attention_mask=two_way, past_key_values=MemoryCache(tiny, Full()))
    with pytest.raises(UnsupportedModelError, match="mask of shape"):
        tiny(ids[:, :20], attention_mask=two_way[..., :10], past_key_values=MemoryCache(tiny, Full()))


def test_training_mode_with_dropout_is_refused(ids: Tensor) -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=200,
        attention_dropout=0.1,
    )
    model = LlamaForCausalLM(config).train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        model(ids, past_key_values=MemoryCache(model, Full()))


def test_no_gradients_are_held(ids: Tensor, tiny: PreTrainedModel) -> None:
    cache = MemoryCache(tiny, NAMMPolicy(MEMORY))
    tiny(ids, past_key_values=cache)
    assert not any(c.requires_grad for layer in cache.layers for row in layer.rows for c in row.store.columns.values())


@pytest.mark.fault("A15", siblings="states written in any mode after a prompt in another; beams; rows copied")
@pytest.mark.parametrize("policy", EVICTING, ids=named)
@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("second", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_cache_goes_on_in_another_mode(tiny, ids, policy: Policy, first, second) -> None:
    cache, expected = MemoryCache(tiny, policy), MemoryCache(tiny, policy)
    with first():
        tiny(ids[:, :100], past_key_values=cache)
    run(tiny, ids[:, :100], expected, [])
    with second():
        cache.settle()
    expected.settle()
    for each, mode in ((cache, second), (expected, torch.no_grad)):
        with mode():
            tiny(ids[:, 100:], past_key_values=each)
            each.settle()
        each.check()
    for found, right in zip(cache.positions(), expected.positions(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found[0], right[0], strict=True))


@pytest.mark.fault("A16", siblings="a module compiled in place before or after the cache was made")
def test_a_compiled_model_is_refused(tiny: PreTrainedModel, ids: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="compiled"):
        MemoryCache(torch.compile(tiny), Full())
    model = copy.deepcopy(tiny)
    cache = MemoryCache(model, Full())
    model.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled"):
        MemoryCache(model, Full())
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="compiled"):
        model(ids, past_key_values=cache)


def sliding(spread: float = 0.02) -> PreTrainedModel:
    """A random Gemma 2, every second layer of which has a window of 40, and bounded logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=200,
        sliding_window=40,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        initializer_range=spread,
    )
    model = Gemma2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    return model


def test_sliding_layers_pass_through(ids: Tensor) -> None:
    model = sliding()
    with torch.no_grad():
        expected = model(ids).logits
    cache = MemoryCache(model, Full())
    torch.testing.assert_close(run(model, ids, cache, [100, 1]), expected, atol=1e-4, rtol=1e-3)
    assert cache.stats().layers == (1, 3) and cache.stats().other_bytes > 0
    batch, mask, positions = padded(ids, 200)
    output = run(model, batch, MemoryCache(model, Full()), [], attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(output[1, 100:], expected[0, :200], atol=1e-4, rtol=1e-3)


def test_a_model_of_sliding_layers_only_is_refused() -> None:
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
        sliding_window=16,
    )
    with pytest.raises(UnsupportedModelError, match="no full-attention layer"):
        MemoryCache(MistralForCausalLM(config), Full())


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        MemoryCache(model, Full())


def test_a_model_that_transforms_cached_keys_is_refused(ids: Tensor) -> None:
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    config = DiffLlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
    )
    model = DiffLlamaForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError):
        model.generate(ids[:, :20], past_key_values=MemoryCache(model, Full()), max_new_tokens=3, pad_token_id=0)


def test_something_that_is_no_policy_is_refused(tiny: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="got str"):
        MemoryCache(tiny, "h2o")  # type: ignore[arg-type]


def test_reset_makes_the_cache_new(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, NAMMPolicy(MEMORY))
    first = run(tiny, ids, cache, [])
    cache.reset()
    assert cache.stats().held_bytes == 0 and cache.get_seq_length() == 0
    assert torch.equal(run(tiny, ids, cache, []), first)


def test_the_rows_carried_over_are_the_last_rows_of_the_block_before(tiny: PreTrainedModel, ids: Tensor) -> None:
    seen: dict[tuple[int, int], list[Tensor]] = {}

    class Watching(NAMMPolicy):
        def observe(self, head):
            seen.setdefault((head.layer, head.index), []).append(head.attention.clone())
            return super().observe(head)

    run(tiny, ids, MemoryCache(tiny, Watching(MEMORY, offset=1e9)), [100])
    assert len(seen) == 6
    for blocks in seen.values():
        assert len(blocks) == 4 and not blocks[0][:16].any()
        for before, after in zip(blocks, blocks[1:], strict=False):
            torch.testing.assert_close(after[:16, : before.shape[1]], before[-16:], atol=1e-6, rtol=1e-4)
            assert not after[:16, before.shape[1] :].any()


def test_an_interrupted_call_is_noticed(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, Full())
    run(tiny, ids[:, :30], cache, [])
    handle = tiny.model.layers[0].mlp.register_forward_hook(lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tiny(ids[:, 30:40], past_key_values=cache)
    handle.remove()
    with pytest.raises(RuntimeError, match="interrupted"):
        tiny(ids[:, 40:50], past_key_values=cache)


def test_new_parameters_count_at_once(tiny: PreTrainedModel, ids: Tensor) -> None:
    memory = NAMM(NAMMConfig(update_interval=64))
    policy = NAMMPolicy(memory)
    run(tiny, ids, MemoryCache(tiny, policy), [])
    vector = memory.flat_parameters()
    vector[-1] = 1e6
    memory.load_flat_parameters(vector)
    cache = MemoryCache(tiny, policy)
    run(tiny, ids, cache, [])
    assert cache.stats().kept_fraction == 1.0


def test_a_mask_that_forgets_the_past_is_refused(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, Full())
    run(tiny, ids[:, :20], cache, [])
    with pytest.raises(ValueError, match="must cover the tokens of earlier calls"):
        tiny(ids[:, 20:30], attention_mask=torch.ones(1, 10, dtype=torch.long), past_key_values=cache)


@pytest.mark.parametrize("policy", EVICTING, ids=named)
def test_settling_decides_now(tiny: PreTrainedModel, ids: Tensor, policy: Policy) -> None:
    cache = MemoryCache(tiny, policy)
    run(tiny, ids[:, :150], cache, [])
    before = cache.stats().kept_fraction
    cache.settle()
    cache.check()
    assert cache.stats().kept_fraction < before
    if policy.name != "namm":
        assert all(row.store.lengths == [round(0.25 * 150)] * 2 for layer in cache.layers for row in layer.rows)
    run(tiny, ids[:, 150:], cache, [1, 1])  # and the next block begins there
    updated = cache.layers[0].rows[0].updated
    assert updated == 150 + (ids.shape[1] - 150) // 64 * 64 and updated > 150


@pytest.mark.parametrize("policy", EVICTING, ids=named)
def test_settling_where_a_block_ends_changes_nothing(tiny: PreTrainedModel, ids: Tensor, policy: Policy) -> None:
    cache, settled = MemoryCache(tiny, policy), MemoryCache(tiny, policy)
    for each in (cache, settled):
        run(tiny, ids[:, :128], each, [])
    settled.settle()
    assert torch.equal(run(tiny, ids[:, 128:], settled, []), run(tiny, ids[:, 128:], cache, []))


def test_settling_a_padded_batch_equals_single_runs(tiny: PreTrainedModel, ids: Tensor) -> None:
    policy = H2O(budget=0.25, update_interval=64)
    batch, mask, positions = padded(ids, 100)
    together = MemoryCache(tiny, policy)
    run(tiny, batch, together, [], attention_mask=mask, position_ids=positions)
    together.settle()
    together.check()
    for row, length in enumerate((ids.shape[1], 100)):
        alone = MemoryCache(tiny, policy)
        run(tiny, ids[:, :length], alone, [])
        alone.settle()
        for layer, expected in zip(together.layers, alone.layers, strict=True):
            for h in range(2):
                found = layer.rows[row].store.head(h)["positions"]
                assert torch.equal(found, expected.rows[0].store.head(h)["positions"])


def test_a_settled_spectrogram_is_that_of_shorter_blocks(tiny: PreTrainedModel, ids: Tensor) -> None:
    settled = MemoryCache(tiny, NAMMPolicy(MEMORY, offset=1e9))
    run(tiny, ids[:, :112], settled, [])
    settled.settle()
    run(tiny, ids[:, 112:176], settled, [])
    short = MemoryCache(tiny, NAMMPolicy(NAMM(NAMMConfig(update_interval=16)), offset=1e9))
    run(tiny, ids[:, :176], short, [])
    for layer, expected in zip(settled.layers, short.layers, strict=True):
        for h in range(2):
            found, right = (each.rows[0].store.head(h)["spectrogram"] for each in (layer, expected))
            torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


def test_a_block_too_short_for_a_frame_is_left_undecided(tiny: PreTrainedModel, ids: Tensor) -> None:
    cache = MemoryCache(tiny, NAMMPolicy(MEMORY, offset=-1e9))
    run(tiny, ids[:, : 64 + 15], cache, [])
    cache.settle()
    cache.check()
    assert cache.layers[0].rows[0].store.lengths == [16, 16]
    run(tiny, ids[:, 79:100], cache, [])
    cache.settle()  # 36 queries: two frames of 16, the oldest four belong to none
    cache.check()
    assert cache.layers[0].rows[0].store.lengths == [1, 1]
